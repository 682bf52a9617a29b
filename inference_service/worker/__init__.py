"""The worker process: Celery consumer and task, supervisor, metrics, health, deployment checks."""
