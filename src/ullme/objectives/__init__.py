"""ullme.objectives."""
