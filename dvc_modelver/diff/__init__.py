"""Two versions compared: tensors matched, changes measured and classified, then rendered."""
