"""LightningModules: the captioner and VQ-VLM, BLIP, ViLT, CLIP, and the heads for NLVR2 and VQA (floor 3)."""
