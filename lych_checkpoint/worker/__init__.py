"""The worker's side of a freeze: barrier, tokens, heartbeat and the steps that tie them into Celery's worker."""
