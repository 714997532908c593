"""The merger: whole epochs from the log, folded, into one Delta commit a table."""
