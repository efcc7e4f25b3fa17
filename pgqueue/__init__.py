"""pgqueue: Celery's programming model on nothing but PostgreSQL."""
