"""Which pairs to keep: one method, one file (floor 3)."""
