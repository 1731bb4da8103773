"""The QLIP paper's table of results on LLaVA-1.5, column by column: paper, ours, difference."""
