"""The MLP prior for positions: its training."""
