"""QLIP inside models and programs of other libraries."""
