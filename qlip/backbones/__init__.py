"""What a vision model is made of, for each family that QLIP knows."""
