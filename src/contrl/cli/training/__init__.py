"""``contrl sft|reward|dpo|kto|cpo|orpo|ppo|rloo|grpo``: one implementation for all of them.

Reading order: command (what happens), table (every flag), request (flags and file -> values), help; for methods that
sample also online (their flags), meaning, samples (TRL's counts) and rewards. Flags become overrides of a
configuration, so every check, message and default of ``contrl run`` holds here too.
"""
