"""What every layer uses and that knows no image, job or model: errors, settings, host, memory, threads, logs."""
