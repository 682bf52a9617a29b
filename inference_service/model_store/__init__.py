"""Models in the object storage: pushed, pulled, and fetched into the cache of a machine when a job needs them."""
