"""Loading policies, the embedded models, adapters and reference models."""
