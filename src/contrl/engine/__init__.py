"""The one training loop: groups in, optimizer steps out; it names no method and no strategy."""
