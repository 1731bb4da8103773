"""LLaVA's language models: Llama and Mistral."""
