"""Other ways to few visual tokens, without training."""
