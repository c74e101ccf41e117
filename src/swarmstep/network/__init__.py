"""Networks between workers: real slow ones in namespaces, and the virtual clock that computes their cost."""
