"""ullme.cli."""
