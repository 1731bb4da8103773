"""LLaVA's language models: Llama, Mistral, Qwen2 and MPT."""
