"""Messages from the lists in Redis: how they are taken and checked, and cancellations."""
