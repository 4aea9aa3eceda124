"""The law of the work tree: which of model, metadata and pointer moved, and what follows from it."""
