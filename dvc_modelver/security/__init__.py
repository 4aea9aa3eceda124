"""What a model file would import, call or run when a framework loads it; read as data, nothing is loaded."""
