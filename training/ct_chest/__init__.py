"""The model `ct-chest`: a small network that is trained on synthetic CT alone."""
