"""Runs with injected faults: their schedule, injection and verdict. Such a run is called a storm."""
