"""Many runs as one: arms x seeds x orders, each an ordinary run folder, carried out by a pool of processes.

Reading order: reading (the file), arms (grids and sweeps), checking (every configuration, before anything runs),
claims (who runs what, on any number of machines), worker (one run in a process of its own), pool and carry_out (all of
them). What a study consists of stands in study.json (continual/study_manifest.py).
"""
