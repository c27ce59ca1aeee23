"""Checkpoints of other projects, in and out: Hugging Face's BLIP, CLIP, BERT, ViT and ViLT, and timm's."""
