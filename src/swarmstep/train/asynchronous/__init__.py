"""Runs of asynchronous methods: `swarmstep train --strategy asgrad`, in virtual time or in real processes."""
