"""What a model says about every pair of a pool, cached on disk (floor 2)."""
