"""The command line as it is declared: help, imports, options, completions, and the calls in the documentation."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import typer
import typer.main

from swarmstep.cards import CARDS
from swarmstep.chaos import command_line as chaos_lines
from swarmstep.chaos.settings import ChaosSettings
from swarmstep.cli import main
from swarmstep.cli.app import COMMANDS, app, load
from swarmstep.cli.exit_codes import MEANINGS
from swarmstep.cli.options import fields_of, given
from swarmstep.compare.run_processes import arguments
from swarmstep.compare.settings import ComparisonSettings
from swarmstep.microbench.benchmarks import BENCHMARKS
from swarmstep.strategies import STRATEGIES
from swarmstep.train.config import Config, Invocation
from swarmstep.train.sampling import SampleSettings
from swarmstep.train.set_options import setting_types
from swarmstep.workloads.defaults import BUILT_IN, Defaults

ROOT = Path(__file__).parents[2]
PATHS = ["", *COMMANDS, *(f"bench {name}" for name in BENCHMARKS)]
DECLARED = {
    "train": (Config, Invocation),
    "compare": (ComparisonSettings,),
    "chaos": (ChaosSettings,),
    "sample": (SampleSettings,),
}
DECLARED |= {f"bench {name}": (entry.settings,) for name, entry in BENCHMARKS.items()}


def parsed(words: Sequence[str]) -> typer.Context:
    """Return the context of the command that a command line without the first word names, without running it."""
    if words[0].startswith("--"):
        assert words[0] in {name for option in typer.main.get_command(app).params for name in option.opts}
        return typer.Context(typer.main.get_command(app))
    command, rest = load(words[0]), [*words[1:]]
    if rest and rest[0] in getattr(command, "commands", {}):
        command = command.commands[rest.pop(0)]
    return command.make_context(words[0], rest)


def options_of(path: str) -> list[Any]:
    words = path.split()
    command = load(words[0])
    for word in words[1:]:
        command = command.commands[word]
    return command.params


# The help


@pytest.mark.parametrize("columns", [60, 80, 200])
@pytest.mark.parametrize("path", PATHS)
def test_help_fits_the_terminal(
    path: str, columns: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    assert main([*path.split(), "--help"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert max(map(len, out.splitlines())) <= columns
    assert f"Usage: swarmstep {path}".strip() in out
    assert "\x1b" not in out
    words = {*out.split()}
    for option in options_of(path) if path else []:
        names = option.opts if option.opts[0].startswith("-") else [option.metavar]
        assert {*names} <= words, f"{names} {'is cut off' if columns < 80 else 'are missing'}"
    assert not re.search(r"\[/?bold\]|\\\[", out)


def test_the_list_of_commands_is_complete(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(f"│ {name} " in out for name in COMMANDS)
    modules = {path.stem for path in (ROOT / "src/swarmstep/cli").glob("*.py")}
    helpers = {"__init__", "app", "exit_codes", "json_output", "options", "preload", "text"}
    assert modules - helpers == {*COMMANDS}


def test_help_shows_defaults_and_exit_codes(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["train", "--help"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [*BUILT_IN] in lines
    for field in dataclasses.fields(Defaults):
        values = [str(getattr(workload.defaults, field.name)) for workload in BUILT_IN.values()]
        assert [field.name.replace("_", "-"), *values] in lines
    for code, meaning in MEANINGS.items():
        assert [str(code), *meaning.split()] in lines


@pytest.mark.parametrize("path", DECLARED)
def test_every_setting_is_an_option_with_help(path: str) -> None:
    options = {option.name: option for option in options_of(path)}
    for kind in DECLARED[path]:
        for field in dataclasses.fields(kind):
            option = options[field.name]
            assert option.help
            assert option.metavar or option.is_flag
            if field.name not in ("workload", "settings", "link"):
                assert option.opts == [f"--{field.name.replace('_', '-')}"]
                assert option.default == field.default


# Options


def test_what_is_given_is_told_from_what_is_left_out() -> None:
    assert given(parsed(["train", "digits"]), Config) == {"workload": "digits"}
    words = "train digits --workers 4 --set a=1 --set b=x=y --set a=2 --fast-sums --steps 1e3 --every=5"
    expected = {"workload": "digits", "workers": 4, "settings": {"a": "2", "b": "x=y"}, "fast_sums": True}
    assert given(parsed(words.split()), Config) == {**expected, "steps": 1000, "every": 5}
    assert given(parsed(["train", "--resume", "runs/x"]), Config) == {}


@pytest.mark.parametrize(
    "config",
    [
        Config("digits"),
        Config(
            "file.py:x", strategy="pso-ps", settings={"inertia": "0.5", "best": "historical"}, when="qsr:4,0.1"
        ),
        Config("mnist", workers=2, every=7, lr=1e-7, steps=10**7, seed=2**62, mix=0.1, codec="topk:0.02"),
        Config("mnist", fast_sums=True, fragments=3, delay=2, optimizer="adamw", backend="nccl", data="my data"),
        Config(
            "digits", shards="dirichlet:0.1+bad-labels:1", fault="noise:1:0.1", elastic="local", backend="gloo"
        ),
    ],
)
def test_a_config_survives_the_command_line(config: Config) -> None:
    assert Config(**given(parsed(arguments(config, Path("out"))), Config)) == config


@pytest.mark.parametrize(
    "settings",
    [
        ChaosSettings("digits"),
        ChaosSettings(
            "a file.py:x", workers=5, minutes=0.5, kinds="kill,stop", link="100mbit,2ms", pace=0.02, seed=3
        ),
    ],
)
def test_a_trial_survives_the_command_line(settings: ChaosSettings) -> None:
    words = shlex.split(chaos_lines.command_line(settings))
    assert ChaosSettings(**fields_of(ChaosSettings, parsed(words[1:]).params)) == settings
    for line in (chaos_lines.elastic(settings), chaos_lines.simulation(settings, 40)):
        context = parsed(line)
        config = Config(**given(context, Config))
        assert (config.workload, config.workers, config.every) == (
            settings.workload,
            settings.workers,
            settings.every,
        )
        Invocation(**fields_of(Invocation, context.params))


def test_the_program_has_the_options_after_it() -> None:
    context = parsed(["run", "--workers", "2", "x.py", "--workers", "3", "--", "-v", "--json"])
    assert context.params["workers"] == 2
    assert context.params["arguments"] == ["--workers", "3", "--", "-v", "--json"]
    assert not context.params["as_json"]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("swarmstep tr", "train"),
        ("swarmstep train --strat", "--strategy"),
        ("swarmstep train --strategy p", "papa pso-ps"),
        ("swarmstep train mn", "mnist"),
        ("swarmstep train --backend ", "sim gloo nccl"),
        ("swarmstep bench ", " ".join(BENCHMARKS)),
        ("swarmstep cite spars", "sparseloco"),
    ],
)
def test_a_shell_completes(
    line: str, expected: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    number = len(line.split()) - (not line.endswith(" "))
    asked = {"_SWARMSTEP_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(number)}
    for name, value in asked.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit):
        main([])
    assert capsys.readouterr().out.split() == expected.split()


# Methods


@pytest.mark.parametrize("name", CARDS)
def test_a_method_shows_its_settings(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["strategies", name, "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["name"] == name
    types = setting_types(STRATEGIES[name]) if name in STRATEGIES else {}
    assert [setting["name"] for setting in shown["settings"]] == [*types]
    assert all(len(setting["about"]) > 5 and setting["type"] for setting in shown["settings"])
    assert main(["strategies", name]) == 0
    text = capsys.readouterr().out
    assert CARDS[name].title in text
    assert all(f"  {setting}=" in text for setting in types)


def test_a_default_is_shown_as_it_is_given(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["strategies", "pso-ps"]) == 0
    text = capsys.readouterr().out
    assert "constriction=false" in text
    assert "clamp=none" in text


# The documentation


class Incomplete:
    """Expects nothing to be wrong with a command line, but that something is missing."""

    def __enter__(self) -> None: ...

    def __exit__(self, kind: Any, error: Any, trace: Any) -> bool:
        message = error.format_message() if isinstance(error, typer.TyperException) else ""
        return bool(re.match("Missing |Option '.*' requires an argument", message))


def command_lines() -> list[tuple[str, str, bool]]:
    """Return (page, command line, whether it is whole) for each call of swarmstep in the documentation.

    In running text an argument or a value may be missing.
    """
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
    call = re.compile(r"^(?:\$ )?((?:sudo )?swarmstep .*)$", re.MULTILINE)
    found: list[tuple[str, str, bool]] = []
    for page in pages:
        text = page.read_text().replace("\\\n", " ")
        for block in re.findall(r"```\w*\n(.*?)```", text, re.DOTALL):
            found += [(page.name, line, True) for line in call.findall(block)]
        prose = re.sub(r"```\w*\n.*?```", "", text, flags=re.DOTALL)
        found += [(page.name, " ".join(line.split()), False) for line in re.findall(r"`(swarmstep [^`]+)`", prose)]
    return found


@pytest.mark.parametrize(("page", "line", "whole"), command_lines())
def test_a_command_line_of_the_documentation_is_valid(page: str, line: str, whole: bool) -> None:
    words = shlex.split(line.replace("...", ""), comments=True)
    parts = contextlib.nullcontext() if whole else Incomplete()
    with parts:
        parsed(words[words.index("swarmstep") + 1 :])
