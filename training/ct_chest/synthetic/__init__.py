"""The synthetic chest CT that the network is trained on: a patient, what lies around him, and a scanner."""
