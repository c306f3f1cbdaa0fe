"""Freeze a Celery system, seal its code and its PostgreSQL data as one pair, and bring both back together."""
