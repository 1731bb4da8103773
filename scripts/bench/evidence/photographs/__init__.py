"""What photographs cost: tokens and time."""
