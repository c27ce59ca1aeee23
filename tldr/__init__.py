"""TL;DR: shrink image-text data for vision-language pre-training (Wang et al., ICCV 2023, arXiv 2305.20087)."""

__version__ = "0.1.0"
