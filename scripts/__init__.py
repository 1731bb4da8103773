"""Command-line programs around the packages: benchmarks, converters, recipes."""
