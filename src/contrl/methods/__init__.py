"""How to learn: one file per method."""
