"""Everything in Redis: who may act (lock), whether workers may start tasks (lease), who they are (roster)."""
