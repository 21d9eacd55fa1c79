"""ullme.apps."""
