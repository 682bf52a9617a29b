"""The command line `inference-service`."""
