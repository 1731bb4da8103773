"""The projector from tower to language model."""
