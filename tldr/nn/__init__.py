"""Networks and losses, torch only (floor 1)."""
