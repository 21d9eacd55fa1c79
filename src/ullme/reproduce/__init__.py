"""The paper's Table 2: every row trained, scored, compared and drawn by one command."""
