"""Submissions over HTTP: JSON, or a form whose files are stored while they arrive."""
