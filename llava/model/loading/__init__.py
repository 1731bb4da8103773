"""Reads the parts of a checkpoint folder, which `llava.model.builder` joins: files, weights, adapters, tokenizer."""
