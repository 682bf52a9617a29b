"""Many scans at once: the scans of a folder, the folder of their results, and the runs from one to the other."""
