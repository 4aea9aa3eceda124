"""Git as we use it: reading objects, running git, attributes, configuration, hooks. Knows nothing of models."""
