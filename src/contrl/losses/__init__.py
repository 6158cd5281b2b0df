"""Losses and advantages as pure functions of tensors; torch and nothing else."""
