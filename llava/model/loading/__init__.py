"""A checkpoint folder read piece by piece: files, configuration, weights, adapters, tokenizer. The builder joins them."""
