"""TRL's names over contrl's engine: thin faces for programs that were written for it, no second trainer.

``configs.py`` and ``accepted.py`` say what each argument means here, ``given.py``, ``tasks.py`` and ``models.py`` take
what users hand in, ``base.py`` runs it, ``faces.py`` has the names. Of reinforcement ``online_*.py`` and
``ppo_config.py`` do the same, ``batches.py`` its batch sizes; ``step.py`` is PPO whose caller samples.
"""
