"""What a run with workers that die, stall and come back is worth: `swarmstep chaos`."""
