"""Evaluation: commands that answer question files, and scorers of benchmarks."""
