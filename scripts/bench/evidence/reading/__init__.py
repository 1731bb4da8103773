"""What decides whether a sign is read."""
