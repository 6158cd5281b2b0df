"""``contrl sft|reward|dpo|kto|cpo|orpo``: one implementation for all of them.

Reading order: command (what happens), table (every flag), request (flags and file -> values), help. Flags become
overrides of a configuration, so every check, message and default of ``contrl run`` holds here too.
"""
