"""Real runs that are killed, interrupted, starved of disk and damaged, then resumed and compared."""
