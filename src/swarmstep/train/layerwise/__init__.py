"""Runs of methods without gradients: `swarmstep train --method ssfn`, in one process or in real ones."""
