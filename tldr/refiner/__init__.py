"""What happens to the captions of the kept pairs (floor 3)."""
