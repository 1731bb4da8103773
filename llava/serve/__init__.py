"""Serves models: the terminal chat, the servers, the web page, and the generation engine that they use."""
