"""LLaVA's language models: Llama, Mistral and Qwen2."""
