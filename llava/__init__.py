"""LLaVA v1.5 on today's PyTorch and transformers, with an optional QLIP vision tower."""
