"""ullme.eval."""
