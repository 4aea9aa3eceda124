"""What is known of a version, in the words of other programs: model cards, bills of materials, MLflow."""
