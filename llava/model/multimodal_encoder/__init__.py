"""The vision towers."""
