"""What runs in a training process: the Synchronizer and its parts."""
