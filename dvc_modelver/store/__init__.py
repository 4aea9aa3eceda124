"""DVC's side of a repository: pointer files, settings, cache, remotes. Knows nothing of Git or of tensors."""
