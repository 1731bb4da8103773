"""Sizes of CLIP ViT-L/14 at 336 pixels, LLaVA v1.5's vision tower."""

PATCH_SIZE, NATIVE_SIZE = 14, 336  # pixels
