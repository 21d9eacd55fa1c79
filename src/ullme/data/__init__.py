"""ullme.data."""
