"""Checkpoints: written atomically, read as data only."""
