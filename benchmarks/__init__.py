"""Measures the engine against what else would run the same weights; see README.md here. No part of the service."""
