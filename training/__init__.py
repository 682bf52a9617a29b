"""How the models in `models/` were made: one package for each."""
