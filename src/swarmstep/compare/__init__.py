"""Which method reaches the accuracy wanted soonest: a grid of runs, their statistics, and the report."""
