"""What a model is worth: one evaluator, one file (floor 3)."""
