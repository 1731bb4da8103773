"""QLIP inside models of other libraries."""
