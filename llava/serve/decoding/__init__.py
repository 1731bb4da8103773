"""Decodes untrusted images in separate processes that can be killed."""
