"""What a round costs on this machine: ``swarmstep bench``.

Each benchmark is a module (`rounds`, `wire`, `overlap`, `scale`, `sweep`). `workers` starts its processes,
`interleaved_timing` times its `cases` and `baselines`, and `table` prints its `results`.
"""
