"""The asynchronous methods by their names on the command line: their settings, and what does not go with them."""

from __future__ import annotations

import dataclasses
from typing import Any

from swarmstep.asynchronous import AsGrad, Function, LayUp, Method, Outer, Quorum, Work
from swarmstep.errors import UsageError
from swarmstep.runtime.optimizer_state import LOCAL
from swarmstep.train.asynchronous.local_steps import LocalSteps
from swarmstep.train.config import LAYUP, Config
from swarmstep.train.modifiers import build_modifiers
from swarmstep.train.set_options import parse_settings
from swarmstep.train.speed_options import parse_speeds


@dataclasses.dataclass(frozen=True)
class ServerSettings:
    """What --set takes for both methods with a server.

    Args:
        rule: how much a late result counts: constant, delay-adaptive, staleness or rescaled.
        ignore: drop results that are so many steps of the server late, or more; 0: none.
        outer_lr: of the server's step; none: wait / W for asgrad, 1 for quorum.
        outer_momentum: delayed Nesterov's.
        outer_every: at each how many steps of the server the momentum moves.
    """

    rule: str = "constant"
    ignore: int = 0
    outer_lr: float | None = None
    outer_momentum: float = 0.0
    outer_every: int = 1

    def outer(self, lr: float) -> Outer:
        """Return the server's optimizer, with this learning rate where none is set."""
        return Outer(lr if self.outer_lr is None else self.outer_lr, self.outer_momentum, self.outer_every)


@dataclasses.dataclass(frozen=True)
class AsGradSettings(ServerSettings):
    """What --set takes for `asgrad`.

    Args:
        rule: how much a late result counts: constant, delay-adaptive, staleness or rescaled; or ringleader, each
            worker's mean result counts the same.
        assign: who gets a new job: pure, who has delivered; random; shuffled, all in an order drawn anew.
        wait: how many results the server waits for, 1 to W.
    """

    assign: str = "pure"
    wait: int = 1

    def build(self, config: Config, work: Work) -> Method[Any]:
        """Return the method."""
        outer = self.outer(self.wait / config.workers)
        return AsGrad(
            config.workers, work, outer, self.assign, self.rule, self.wait, self.ignore, seed=config.seed
        )


@dataclasses.dataclass(frozen=True)
class QuorumSettings(ServerSettings):
    """What --set takes for `quorum`; a round is a step of the server.

    Args:
        quorum: a round closes when so many have come, 1 to W; none: W - 1.
        grace: seconds that it stays open after that.
    """

    quorum: int | None = None
    grace: float = 0.0

    def build(self, config: Config, work: Work) -> Method[Any]:
        """Return the method."""
        quorum = max(1, config.workers - 1) if self.quorum is None else self.quorum
        return Quorum(config.workers, work, self.outer(1.0), quorum, self.grace, self.rule, self.ignore)


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
        "--eager": config.eager,
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
        "--optimizer-state": config.optimizer_state != LOCAL,
    }
    found = [option for option, value in absent.items() if value]
    if found:
        raise UsageError(f"{config.strategy} has no rounds: expected no {found[0]}")
    if config.shards == "dealt":
        raise UsageError(f"{config.strategy}: nobody deals out examples; expected --shards iid, found dealt")
    if config.backend == "nccl":
        raise UsageError(f"{config.strategy}: expected --backend sim or gloo, found nccl")
    if acting := [part for part in build_modifiers(config).parts if part.acts_on_steps]:
        raise UsageError(
            f"{config.strategy} takes no {acting[0]}, which changes weights between steps; use rounds"
        )
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
