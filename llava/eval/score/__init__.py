"""Shared parts of the scorers: reading files, reading answers, counting."""
