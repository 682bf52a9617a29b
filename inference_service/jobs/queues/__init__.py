"""The queues in Redis: their lists, messages and state. It knows nothing of the jobs' rows."""
