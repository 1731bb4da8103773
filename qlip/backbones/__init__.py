"""Adapters to the vision transformers that QLIP supports, and their checkpoints."""
