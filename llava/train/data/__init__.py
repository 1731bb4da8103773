"""From the training file to batches: samples, prompts and labels, lengths, and which samples come together."""
