"""The published claims, and whether new answers agree with them."""
