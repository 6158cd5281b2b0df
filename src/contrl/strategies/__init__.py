"""How not to forget: one file per strategy."""
