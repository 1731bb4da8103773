"""What all HTTP servers here share; no protocol, no model."""
