"""Controllers and workers: LLaVA's protocol between them."""
