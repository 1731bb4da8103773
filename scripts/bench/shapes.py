"""Shapes of random models that several benchmarks load. Imports nothing heavy."""

CLIP_SMALL = {
    "model_type": "clip_vision_model",
    "hidden_size": 256,
    "intermediate_size": 1024,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "image_size": 112,
    "patch_size": 14,
}
"""A vision tower of 3 million weights."""
