"""Benchmarks of the engine against other software that runs the same networks; see README.md. Not shipped."""
