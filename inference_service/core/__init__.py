"""Modules that every other package may use; they know no image, model or job."""
