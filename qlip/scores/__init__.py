"""Scores of blocks, which decide where a quadtree splits: criteria, noise that they disregard, and their arithmetic."""
