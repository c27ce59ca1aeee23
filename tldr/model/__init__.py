"""LightningModules: the captioner and VQ-VLM, BLIP, CLIP (floor 3)."""
