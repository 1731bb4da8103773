"""Runs evaluation harnesses of others on the `llava` package."""
