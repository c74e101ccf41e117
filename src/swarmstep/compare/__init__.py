"""Compares methods: a grid of runs, its tuning and execution, and the statistics of the results."""
