"""What --balance and --speeds go with; everything else is refused by name before the first step."""

from __future__ import annotations

from swarmstep.cards import CARDS
from swarmstep.errors import UsageError
from swarmstep.strategies.base import check_choice
from swarmstep.train.config import BALANCES, BASELINES, DDP, SYNCHRONOUS, Config
from swarmstep.train.speed_options import parse_speeds, unequal
from swarmstep.train.trigger_options import trigger_of


def check_balance(config: Config) -> None:
    """Raise UsageError where --balance or --speeds does not go with another option of a config."""
    check_choice("balance", config.balance, BALANCES)
    _check_speeds(config)
    _check_max_batch(config)
    if config.balance == "off":
        return
    option = f"--balance {config.balance}"
    if config.elastic in ("local", "torchft"):
        _check_elastic(config, option)
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
    if config.backend == "sim" and config.balance != "off" and not unequal(config):
        raise UsageError(
            f"--balance {config.balance}: in one process workers are equally fast; expected --speeds, such as "
            "--speeds 1,1,1,3, or --backend gloo"
        )


def least_batch(config: Config) -> int:
    """Return how many examples of a step each worker gets, at least, with `--balance batch`."""
    return min(2, config.training.batch)  # BatchNorm cannot train on one


def max_batches(config: Config) -> tuple[int, ...]:
    """Return how many examples of a step each worker can hold; empty where no limits are given.

    Raises:
        UsageError: they are malformed.
    """
    if config.max_batch is None:
        return ()
    texts, least = config.max_batch.split(","), least_batch(config)
    if len(texts) != config.workers or not all(text.isdecimal() and int(text) >= least for text in texts):
        raise UsageError(
            f"--max-batch: expected {config.workers} whole numbers of at least {least}, one for each worker, such "
            f"as {','.join(['64'] * (config.workers - 1) + ['16'])}; found {config.max_batch!r}"
        )
    return tuple(map(int, texts))


def _check_max_batch(config: Config) -> None:
    most = max_batches(config)
    if most and config.balance != "batch":
        raise UsageError(f"--max-batch: expected --balance batch, which sets batches, found {config.balance}")
    batch, total = config.training.batch, config.workers * config.training.batch
    if most and sum(most) < total:
        raise UsageError(
            f"--max-batch {config.max_batch}: all workers hold {sum(most)} examples, fewer than the {total} of a "
            f"step; expected --batch of at most {sum(most) // config.workers}"
        )
    if most and config.elastic and min(most) < batch:
        raise UsageError(
            f"--max-batch {config.max_batch}: with --elastic any worker may be left alone; expected at least "
            f"{batch} each, the --batch"
        )


def _check_elastic(config: Config, option: str) -> None:
    if config.delay or config.fragments > 1:
        raise UsageError(
            f"{option}: --elastic measures the workers in each round; expected no --delay and no --fragments"
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
    if config.balance == "time" and config.shards == "dealt":
        raise UsageError(f"{option}: nobody knows who takes which example; expected --shards iid, found dealt")
    trigger_of(config)
