"""The model `ct-tissue`: a smoothing and five thresholds, written by a script."""
