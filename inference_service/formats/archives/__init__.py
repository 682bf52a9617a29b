"""Archives: recognised by content, and unpacked within limits into files that are named by numbers."""
