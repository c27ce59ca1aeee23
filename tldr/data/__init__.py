"""Readers, image access, loading, tokenizer, the embedded dataset (floor 2)."""
