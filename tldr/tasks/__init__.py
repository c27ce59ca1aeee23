"""The story of a run, readable top to bottom: train, select, evaluate (floor 4)."""
