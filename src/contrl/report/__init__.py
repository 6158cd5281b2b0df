"""What was learnt and what was forgotten, told from a run folder alone.

Nothing here imports the engine, torch or transformers, so any old run can be redrawn anywhere. ``table`` prints to a
terminal, ``page`` writes one self-contained report.html; charts and templates load only when a page is built.
"""
