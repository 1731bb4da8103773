"""LLaVA's training: both stages, LoRA and QLoRA, with the CLIP tower or the quadtree."""
