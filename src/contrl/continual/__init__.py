"""What makes a run continual: the stage loop, the results matrix and the metrics read off it.

Nothing is imported here, so that the report can read ``results`` and ``metrics`` (standard library, and
pyarrow for item scores) without loading torch through the runner.
"""
