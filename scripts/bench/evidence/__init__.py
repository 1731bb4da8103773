"""The measurements behind docs/RESULTS.md."""
