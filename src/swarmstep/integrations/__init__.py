"""Training loops of other libraries: their steps are counted, their checkpoints hold the swarm's state."""
