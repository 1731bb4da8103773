"""What a run reads: question files, checked before a model is loaded, and images, prepared ahead of it."""
