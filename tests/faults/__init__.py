"""What is left when a command is killed, or the disk is full, at any step that changes something."""
