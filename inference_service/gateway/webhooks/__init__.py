"""Reports of the ends of jobs to the URLs that callers have named."""
