"""The asynchronous methods by their names on the command line: their settings, and what does not go with them."""

from __future__ import annotations

import dataclasses
from typing import Any

from swarmstep.asynchronous import AsGrad, Function, LayUp, Method, Outer, Quorum, Work
from swarmstep.errors import UsageError
from swarmstep.train.asynchronous.local_steps import LocalSteps
from swarmstep.train.config import LAYUP, Config
from swarmstep.train.set_options import parse_settings
from swarmstep.train.speed_options import parse_speeds


@dataclasses.dataclass(frozen=True)
class AsGradSettings:
    """What --set takes for `asgrad`.

    Args:
        assign: who gets a new job: pure, who has delivered; random; shuffled, all in an order drawn anew.
        rule: how much a late result counts: constant, delay-adaptive, staleness or rescaled.
        wait: how many results the server waits for, 1 to W.
        ignore: drop results that are so many steps late, or more; 0: none.
        outer_lr: of the server's step; none: wait / W.
        outer_momentum: delayed Nesterov's.
        outer_every: at each how many results the momentum moves.
    """

    assign: str = "pure"
    rule: str = "constant"
    wait: int = 1
    ignore: int = 0
    outer_lr: float | None = None
    outer_momentum: float = 0.0
    outer_every: int = 1

    def build(self, config: Config, work: Work) -> Method[Any]:
        """Return the method."""
        outer = _outer(self, self.wait / config.workers)
        return AsGrad(
            config.workers, work, outer, self.assign, self.rule, self.wait, self.ignore, seed=config.seed
        )


@dataclasses.dataclass(frozen=True)
class QuorumSettings:
    """What --set takes for `quorum`.

    Args:
        quorum: a round closes when so many have come, 1 to W; none: W - 1.
        grace: seconds that it stays open after that.
        rule: how much a late result counts: constant, delay-adaptive, staleness or rescaled.
        ignore: drop results that are so many rounds late, or more; 0: none.
        outer_lr: of the server's step; none: 1.
        outer_momentum: delayed Nesterov's.
        outer_every: at each how many rounds the momentum moves.
    """

    quorum: int | None = None
    grace: float = 0.0
    rule: str = "constant"
    ignore: int = 0
    outer_lr: float | None = None
    outer_momentum: float = 0.0
    outer_every: int = 1

    def build(self, config: Config, work: Work) -> Method[Any]:
        """Return the method."""
        quorum = max(1, config.workers - 1) if self.quorum is None else self.quorum
        return Quorum(config.workers, work, _outer(self, 1.0), quorum, self.grace, self.rule, self.ignore)


@dataclasses.dataclass(frozen=True)
class LayUpSettings:
    """What --set takes for `layup`: nothing."""

    def check(self, config: Config) -> None:
        """Raise UsageError unless the workers take plain steps."""
        training = config.training
        plain = training.optimizer == "sgd" and not training.weight_decay and not training.clip
        if not plain or training.schedule != "constant" or training.warmup:
            raise UsageError(
                "layup steps each layer by plain SGD: expected --optimizer sgd --schedule constant --warmup 0 "
                f"--weight-decay 0 --clip 0, found {training.optimizer}, {training.schedule}, {training.warmup}, "
                f"{training.weight_decay}, {training.clip}"
            )

    def build(self, config: Config, work: LocalSteps) -> Method[Any]:
        """Return the method."""
        return LayUp(config.workers, work.model, work.loss, lr=config.training.lr, seed=config.seed)


Settings = AsGradSettings | QuorumSettings | LayUpSettings
SETTINGS: dict[str, type[Settings]] = {"asgrad": AsGradSettings, LAYUP: LayUpSettings, "quorum": QuorumSettings}


def _outer(settings: AsGradSettings | QuorumSettings, lr: float) -> Outer:
    lr = lr if settings.outer_lr is None else settings.outer_lr
    return Outer(lr, settings.outer_momentum, settings.outer_every)


def build_method(config: Config, work: LocalSteps) -> Method[Any]:
    """Return the method of a resolved config."""
    return _settings(config).build(config, work)


def _settings(config: Config) -> Settings:
    kind = SETTINGS[config.strategy]
    return kind(**parse_settings(kind, config.settings))


def check(config: Config) -> None:
    """Raise UsageError where an option does not go with an asynchronous method, or is out of its range."""
    absent = {
        "--when": config.when,
        "--delay": config.delay,
        "--mix": config.mix,
        "--fragments": config.fragments != 1,
        "--codec": config.codec,
        "--fast-sums": config.fast_sums,
        "--elastic": config.elastic,
        "--balance": config.balance != "off",
        "--fault": config.fault,
        "--until-accuracy": config.until_accuracy,
        "--proximal": config.proximal,
        "--control-variates": config.control_variates,
    }
    found = [option for option, value in absent.items() if value]
    if found:
        raise UsageError(f"{config.strategy} has no rounds: expected no {found[0]}")
    if config.shards == "dealt":
        raise UsageError(f"{config.strategy}: nobody deals out examples; expected --shards iid, found dealt")
    if config.strategy == LAYUP and config.backend != "sim":
        raise UsageError(
            "layup has no server that could record a run: expected --backend sim, or a program of your own with "
            "run_peer (docs/asynchronous.md)"
        )
    if config.backend == "nccl":
        raise UsageError(f"{config.strategy}: expected --backend sim or gloo, found nccl")
    parse_speeds(config)
    settings, steps = _settings(config), config.training.steps
    if isinstance(settings, LayUpSettings):
        settings.check(config)
    else:
        if (config.every or 1) > steps:
            raise UsageError(
                f"--every {config.every}: a job is longer than the run; expected 1 to {steps}, its steps"
            )
        settings.build(config, Function(lambda x, worker, number: x))
