"""Scores of a policy on the tasks of a sequence."""
