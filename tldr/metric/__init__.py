"""How answers are counted: pure functions of what a model said and what is right (floor 2)."""
