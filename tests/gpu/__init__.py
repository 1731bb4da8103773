"""Tests that need a GPU; `make gpu-check` runs them, and `pytest tests/gpu --device cpu` tries them without one."""
