"""Version control for model weights on top of Git and DVC."""
