"""Where a quadtree's losses arise."""
