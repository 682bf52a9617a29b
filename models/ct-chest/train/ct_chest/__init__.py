"""Synthetic chest CT, and the small network that is trained on nothing else."""
