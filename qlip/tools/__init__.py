"""Measurements and drawings of quadtrees and towers, for the commands of `qlip`."""
