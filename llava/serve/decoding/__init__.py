"""Untrusted images, decoded in processes that can be killed."""
