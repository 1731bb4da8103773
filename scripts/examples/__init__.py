"""QLIP inside transformers, each in a few lines."""
