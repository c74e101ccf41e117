"""The command ``swarmstep cite``: the papers of the methods."""

from __future__ import annotations

from typing import Annotated

import typer

from swarmstep.cards import CITATIONS, bibtex
from swarmstep.cli.json_output import Json, print_json
from swarmstep.cli.options import completion
from swarmstep.cli.text import examples
from swarmstep.errors import UsageError

app = typer.Typer(add_completion=False)

EPILOG = examples("swarmstep cite diloco >> references.bib", "swarmstep cite streaming-diloco")


@app.command("cite", epilog=EPILOG)
def cite(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME", autocompletion=completion(CITATIONS), help="as `swarmstep strategies` lists it"
        ),
    ],
    as_json: Json = False,
) -> int:
    """Print the BibTeX entry of a method's paper.

    Not only the methods can be cited: so can coda (--objective auc, --proximal), codasca (--control-variates),
    muloco (DiLoCo with --optimizer muon), snoo (DiLoCo with one worker), des-loc (--optimizer-state), mt-dao
    (--optimizer), gpa (PrimalAveraging), palsgd (PseudoSynchronization), sparseloco, powersgd (codecs),
    streaming-diloco (fragments, delay), eager (--eager), factored-gossip (gasloc with overlapped), nm (--sparse),
    localdrop (--regularizer), jacobi (`swarmstep sample`) and spiking (the workload).
    """
    if name not in CITATIONS:
        raise UsageError(f"no paper for {name!r}; expected one of {', '.join(sorted(CITATIONS))}")
    entry = bibtex(CITATIONS[name])
    print_json({"name": name, "key": CITATIONS[name], "bibtex": entry}) if as_json else print(entry)
    return 0
