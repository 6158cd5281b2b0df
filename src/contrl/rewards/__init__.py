"""Rewards: functions from completions to numbers. Nothing is imported here, so that rule-based ones need no torch."""
