"""Runs other evaluation harnesses on the `llava` package."""
