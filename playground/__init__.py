"""The embedded demo: synthetic scenes, questions about them, and the small LLaVA models that answer."""
