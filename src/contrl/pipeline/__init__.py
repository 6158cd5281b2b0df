"""Several runs as one: named steps in order, each a folder, where a step's model may be what another one made.

Reading order: reading (the file), steps (what a step is, and its digest), state (what is done already), carry_out
(the loop), summary (the table). What a command does is not known here: the command line gives each step its verbs.
"""
