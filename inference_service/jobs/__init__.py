"""A job's row, message and objects: schema, attempts, leases, recovery, dispatch, object storage."""
