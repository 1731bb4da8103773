"""Conversion of checkpoints between the formats of LLaVA and of transformers."""
