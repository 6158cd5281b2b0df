"""contrl: one engine for post-training language models on a sequence of tasks.

The public names, nothing else. Importing the package loads neither torch nor transformers, so that
`contrl --help` answers at once.
"""

__version__ = "0.1.0"
