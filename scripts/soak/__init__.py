"""Faults and attacks that the servers must survive."""
