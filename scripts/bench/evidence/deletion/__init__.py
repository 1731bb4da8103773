"""The deletion test of attributions."""
