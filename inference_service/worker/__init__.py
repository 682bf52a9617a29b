"""The worker process: Celery consumer and task, attempts, supervisor and sweeps, metrics, health, deployment checks."""
