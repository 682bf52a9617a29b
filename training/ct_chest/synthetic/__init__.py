"""Draws the synthetic CT that the network is trained on: a patient, the surroundings and a scanner."""
