"""A job's row, message and objects: schema, state machine, attempts, leases, recovery, dispatch, object storage."""
