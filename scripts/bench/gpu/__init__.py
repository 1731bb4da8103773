"""What runs on a GPU: a selection of tests, and the speed of quadtree, first token, engine and batch runner."""
