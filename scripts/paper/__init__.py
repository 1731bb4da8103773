"""Compares our scores with the QLIP paper's table on LLaVA-1.5."""
