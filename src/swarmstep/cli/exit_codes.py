"""The exit codes of all commands, as the help shows them."""

MEANINGS = {
    0: "done",
    1: "an error; SWARMSTEP_TRACEBACK=1 shows where",
    2: "a wrong option or value",
    3: "data missing, foreign or damaged",
    4: "a run folder or checkpoint cannot be used",
    5: "a worker was lost, or the workers do not agree",
    6: "a worker's weights are not finite",
    7: "done, but a loss of the result is not finite",
    130: "stopped on request; a checkpoint was written",
}
EXIT_CODES = "\n".join(["[bold]Exit codes[/bold]", *(f"  {code:<3}  {text}" for code, text in MEANINGS.items())])
