"""What a round costs on this machine: ``swarmstep bench``.

`command` lists the benchmarks and is both ends of the command; `workers` starts the real processes; `race` takes
the times; `things` and `bare` are what is timed; `report` shows it. Each benchmark is a module of its own.
"""
