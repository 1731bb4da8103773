"""Benchmarks: each prints a table with the facts of the machine it ran on."""
