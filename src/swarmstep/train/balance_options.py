"""What --balance and --speeds go with; everything else is refused by name before the first step."""

from __future__ import annotations

from swarmstep.cards import CARDS
from swarmstep.errors import UsageError
from swarmstep.strategies.base import check_choice
from swarmstep.train.config import BALANCES, BASELINES, DDP, SYNCHRONOUS, Config
from swarmstep.train.speed_options import parse_speeds, unequal


def check_balance(config: Config) -> None:
    """Raise UsageError where --balance or --speeds does not go with another option of a config."""
    check_choice("balance", config.balance, BALANCES)
    _check_speeds(config)
    if config.balance == "off":
        return
    option = f"--balance {config.balance}"
    if config.elastic:
        raise UsageError(f"{option}: elastic runs have equal shares; expected no --elastic")
    if config.shards not in ("iid", "dealt") and config.balance != "time":
        raise UsageError(
            f"{option}: the workers draw from one stream of all examples; expected --shards iid, found "
            f"{config.shards}"
        )
    _check_strategy(config, option)
    if config.balance != "batch":
        _check_rounds(config, option)


def _check_speeds(config: Config) -> None:
    parse_speeds(config)
    if unequal(config) and config.elastic in ("local", "torchft"):
        option = "--speeds" if config.speeds else "--jitter" if config.jitter else "--disturb"
        raise UsageError(f"{option}: an elastic run's workers change; expected no --elastic")
    if config.backend == "sim" and config.balance != "off" and not unequal(config):
        raise UsageError(
            f"--balance {config.balance}: in one process workers are equally fast; expected --speeds, such as "
            "--speeds 1,1,1,3, or --backend gloo"
        )


def _check_strategy(config: Config, option: str) -> None:
    if config.strategy == DDP:
        raise UsageError(f"{option}: {DDP} takes the plain mean of the gradients; expected {SYNCHRONOUS}")
    card = CARDS.get(config.strategy)
    if config.strategy in BASELINES or (card and not card.weighted):
        valid = ", ".join(name for name, card in CARDS.items() if card.weighted and name not in BASELINES)
        raise UsageError(
            f"{option}: {config.strategy} does not count workers by their examples; expected one of {valid}"
        )


def _check_rounds(config: Config, option: str) -> None:
    if config.by_gradients:
        raise UsageError(f"{option}: {config.strategy} averages every step; expected --balance batch")
    if config.delay or config.fragments > 1:
        raise UsageError(f"{option}: the workers meet in each round; expected no --delay and no --fragments")
    if config.balance == "time":
        if config.shards == "dealt":
            raise UsageError(f"{option}: nobody knows who takes which example; expected --shards iid, found dealt")
        if not (config.when or "").startswith("time:"):
            raise UsageError(f"{option}: expected --when time:SECONDS, found {config.when or '--every'}")
    elif config.when is not None and not config.when.startswith("every:"):
        raise UsageError(f"{option}: it sets when rounds start; expected --every N, found --when {config.when}")


def mean_steps(config: Config) -> int:
    """Return the mean number of steps between rounds of a config with `--balance steps`."""
    if config.when is None:
        return config.every or 1
    text = config.when.removeprefix("every:")
    if not text.isdecimal():
        raise UsageError(f"unknown trigger {config.when!r}; expected every:N")
    return int(text)
