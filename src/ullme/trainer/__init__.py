"""ullme.trainer."""
