"""Scenes that one tower answers and the other does not, for docs/GALLERY.md."""
