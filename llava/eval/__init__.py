"""Scripts that question a model about given pictures and score the answers."""
