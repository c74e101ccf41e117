"""One training run: configuration, trainer, run folder, progress."""
