"""Who sees which example, and when."""
