"""What a run writes: answers and their rows, in a file that survives a kill and has one writer at a time."""
