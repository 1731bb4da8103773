"""Accuracy over QLIP's settings."""
