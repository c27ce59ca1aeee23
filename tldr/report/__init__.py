"""What a run shows a person: figures, W&B panels, offline HTML (floor 3)."""
