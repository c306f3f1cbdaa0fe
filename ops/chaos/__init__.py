"""Random freezes under load while all around them is killed, stopped and cut off; a checker judges the records."""
