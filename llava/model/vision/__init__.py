"""From images to visual tokens: prepared for the tower, cut into tiles or leaves, encoded, and projected."""
