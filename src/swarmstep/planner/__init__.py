"""How rarely to synchronize on a given network: seconds of a step by method and n, before anything is trained."""
