"""The objects of jobs: the client of the object storage, results, and the audit of what is stored."""
