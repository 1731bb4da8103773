"""Runs over question files: questions and images in, answer files out."""
