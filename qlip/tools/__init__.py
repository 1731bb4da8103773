"""Measurements and drawings of quadtrees and towers."""
