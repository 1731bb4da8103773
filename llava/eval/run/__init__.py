"""Runs over question files: questions and images in, answers files out."""
