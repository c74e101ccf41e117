"""From a Config to what it names: filled in and checked, and the strategy and runtime options built."""

from __future__ import annotations

import dataclasses

from swarmstep import spec_help
from swarmstep.comm import codecs
from swarmstep.data import sharding
from swarmstep.data.sharding import hold_out
from swarmstep.errors import UsageError
from swarmstep.runtime import optimizer_state
from swarmstep.runtime.optimizer_state import Rule
from swarmstep.runtime.options import Options
from swarmstep.runtime.replica import check_states
from swarmstep.strategies import STRATEGIES, Strategy
from swarmstep.strategies.base import check_choice
from swarmstep.strategies.diloco import DiLoCo
from swarmstep.strategies.parts.outer_settings import outer_settings
from swarmstep.strategies.warmup import Warmup
from swarmstep.train import faults
from swarmstep.train.asynchronous import methods
from swarmstep.train.balance_options import check_balance
from swarmstep.train.config import ASYNCHRONOUS, BACKENDS, BASELINES, DDP, ELASTIC, SYNCHRONOUS, Config
from swarmstep.train.layerwise import options as layerwise
from swarmstep.train.local_step import proximal
from swarmstep.train.modifiers import build_modifiers
from swarmstep.train.optimizer import STATES
from swarmstep.train.set_options import parse_settings
from swarmstep.train.trigger_options import trigger_of
from swarmstep.workloads import Workload
from swarmstep.workloads.defaults import Defaults


def resolve(config: Config, workload: Workload) -> Config:
    """Return the config with every default filled in from the workload, and checked.

    Raises:
        UsageError: a setting is out of its range or does not go with another; lists what would be valid.
    """
    if config.layerwise:
        layerwise.check(config, workload)
        return config
    if config.graph is not None:
        raise UsageError(f"--graph {config.graph}: expected --method ssfn, found {config.method}")
    names = [f.name for f in dataclasses.fields(Defaults)]
    filled = {name: getattr(workload.defaults, name) for name in names if getattr(config, name) is None}
    config = dataclasses.replace(
        config,
        **filled,
        model=config.model or next(iter(workload.models)),
        objective=config.objective or next(iter(workload.objectives), None),
    )
    _check_ranges(config, workload)
    build_modifiers(config)
    _check_objective(config, workload)
    if config.asynchronous:
        methods.check(config)
        return config
    build_options(config)
    check_balance(config)
    strategy = build_strategy(config)
    _check_optimizer(config, strategy)
    _check_states(config, strategy)
    _check_ddp(config)
    _check_elastic(config)
    return config


def _check_ranges(config: Config, workload: Workload) -> None:
    if config.model not in workload.models:
        valid = ", ".join(workload.models)
        raise UsageError(f"unknown model {config.model!r} of {workload.name}; expected {valid}")
    check_choice("backend", config.backend, BACKENDS)
    if config.seed < 0:
        raise UsageError(f"seed must be at least 0, found {config.seed}")
    if config.until_accuracy is not None and not 0 < config.until_accuracy <= 1:
        raise UsageError(f"until_accuracy must be above 0 and at most 1, found {config.until_accuracy}")
    if config.checkpoint_every < 1:
        raise UsageError(f"checkpoint_every must be at least 1, found {config.checkpoint_every}")
    training = config.training
    examples = len(hold_out(len(workload.train), config.seed).train)
    for name, value, most in (
        ("workers", config.workers, examples),
        ("batch", training.batch, max(examples, workload.defaults.batch)),
    ):
        if not 1 <= value <= most:
            raise UsageError(f"{name} must be 1 to {most}, the number of training examples, found {value}")
    sharding.parse(config.shards, config.workers, workload.classes, workload.train.targets.ndim == 1)
    fault = faults.parse(config.fault, config.workers, config.seed)
    if fault and fault.kind == "nan" and fault.number > training.steps:
        raise UsageError(f"fault {config.fault!r}: STEP must be 1 to {training.steps}, the steps of the run")


def _check_objective(config: Config, workload: Workload) -> None:
    """Check what the model is trained for, and how its examples are drawn."""
    if config.until_accuracy is not None and workload.correct is None:
        raise UsageError(f"--until-accuracy: {workload.name} has no accuracy to reach; leave it out")
    if config.objective is not None and config.objective not in workload.objectives:
        valid = f"one of {', '.join(workload.objectives)}" if workload.objectives else "none, as it has one loss"
        raise UsageError(f"unknown objective {config.objective!r} of {workload.name}; expected {valid}")
    if config.sampling != "balanced":
        return
    if workload.classes is None or workload.train.targets.ndim != 1:
        raise UsageError(f"--sampling balanced: {workload.name} has no examples of one class each; take natural")
    dealt = "--elastic" if config.elastic in ("local", "torchft") else ""
    dealt = dealt or ("--balance" if config.balance in ("batch", "steps") else "")
    if dealt or config.shards == "dealt":
        raise UsageError(
            f"--sampling balanced: with {dealt or '--shards dealt'} workers draw from all examples, and not from "
            "shards of their own; take --sampling natural"
        )


def _check_optimizer(config: Config, strategy: Strategy) -> None:
    training = config.training
    if strategy.needs_sgd and (training.optimizer not in ("sgd", "momentum") or training.clip):
        raise UsageError(
            f"{config.strategy} corrects local gradients, which holds for --optimizer sgd or momentum, --clip 0; "
            f"found {training.optimizer} and --clip {training.clip:g}; --set local=false takes any"
        )
    if config.proximal is not None:
        proximal(config)
        if training.schedule != "constant":
            raise UsageError(f"--proximal lowers the learning rate itself; found --schedule {training.schedule}")
        if config.balance in ("steps", "time"):
            raise UsageError(
                f"--proximal: its stages are counted in steps that all workers take; with --balance "
                f"{config.balance} each takes its own number; expected --balance batch or off"
            )
    if config.control_variates:
        _check_control_variates(config, strategy)


def _check_control_variates(config: Config, strategy: Strategy) -> None:
    others = {"--delay": config.delay, "--elastic": config.elastic, "--fragments": config.fragments > 1}
    if found := [option for option, value in others.items() if value]:
        raise UsageError(
            f"--control-variates are taken from whole rounds, in a fixed group; expected no {found[0]}"
        )
    if config.optimizer not in ("sgd", "momentum"):
        raise UsageError(f"--control-variates correct SGD; expected --optimizer sgd, found {config.optimizer}")
    rounds = _warmed_up(strategy)
    if rounds.target == "gradients" or not rounds.card.weighted:
        raise UsageError(
            f"--control-variates need rounds that average the weights of all workers; {config.strategy} has none"
        )


def _warmed_up(strategy: Strategy) -> Strategy:
    """Return the strategy that follows a warm-up, if there is one."""
    return strategy.then if isinstance(strategy, Warmup) else strategy


def _check_ddp(config: Config) -> None:
    if config.strategy == DDP and config.backend == "sim":
        raise UsageError(f"{DDP} needs real processes: give --backend gloo, or --strategy {SYNCHRONOUS}")
    if config.strategy == DDP and config.fault:
        raise UsageError(f"{DDP} takes no --fault; expected {SYNCHRONOUS} or a strategy")


def _check_elastic(config: Config) -> None:
    if config.elastic is None:
        return
    check_choice("elastic", config.elastic, ELASTIC)
    if config.elastic == "torchrun":
        return
    if config.backend != "gloo":
        raise UsageError(f"--elastic {config.elastic} needs real processes: expected --backend gloo")
    if config.by_gradients:
        raise UsageError(f"{config.strategy} synchronizes gradients; --elastic takes a strategy for weights")
    if config.strategy == "hierarchical":
        raise UsageError("hierarchical needs hosts of equal size, which --elastic cannot promise")
    if config.shards not in ("iid", "dealt"):
        raise UsageError(
            f"--elastic takes --shards iid, found {config.shards}: a lost worker's data go to the others"
        )
    if config.until_accuracy is not None:
        raise UsageError("--elastic takes no --until-accuracy: only the first worker evaluates")


def build_options(config: Config) -> Options:
    """Return the runtime's options, as far as the config says them.

    Raises:
        UsageError: a value is out of its range, or does not go with a strategy that synchronizes gradients.
    """
    codec = codecs.parse(config.codec) if config.codec else None
    options = Options(
        seed=config.seed,
        delay=config.delay,
        mix=config.mix,
        fragments=config.fragments,
        codec=codec,
        eager=config.eager,
    )
    allowed = None if config.strategy == DDP else codec
    if config.by_gradients and options != Options(seed=config.seed, codec=allowed):
        none = "--delay, --eager, --mix, --fragments" + (" and --codec" if config.strategy == DDP else "")
        raise UsageError(f"{config.strategy} takes none of {none}: the optimizer waits for the gradients")
    return options


def title_of(config: Config) -> str:
    """Return what a run is, in a line, with settings that follow from the number of workers."""
    if config.layerwise or config.strategy != DiLoCo.card.name:
        return config.title
    strategy = _warmed_up(build_strategy(config))
    if not isinstance(strategy, DiLoCo) or None not in (strategy.lr, strategy.momentum):
        return config.title
    return f"{config.title}; outer step for {config.workers}: {outer_settings(config.workers)}"


def optimizer_rule(config: Config) -> Rule:
    """Return what rounds do with the optimizers' states.

    Raises:
        UsageError: --optimizer-state is no rule.
    """
    text = config.optimizer_state
    if "=" not in text:
        return text
    pairs = [part.partition("=") for part in text.split(",")]
    try:
        return {name.strip(): int(k) for name, _, k in pairs}
    except ValueError:
        raise UsageError(f"--optimizer-state {text}: expected {spec_help.OPTIMIZER_STATES}") from None


def _check_states(config: Config, strategy: Strategy) -> None:
    """Check --optimizer-state: the rule, and that there are such states and means of them."""
    rule = optimizer_rule(config)
    optimizer_state.check(rule, None, {"--delay": config.delay})
    if rule == optimizer_state.LOCAL:
        return
    known = STATES[config.training.optimizer]
    unknown = sorted({*rule} - {*known}) if not isinstance(rule, str) else []
    if unknown or not known:
        raise UsageError(
            f"--optimizer-state {config.optimizer_state}: --optimizer {config.training.optimizer} remembers "
            f"{', '.join(known) or 'nothing'}; expected local" + (", mean or those names" if known else "")
        )
    check_states(rule, strategy)


def build_strategy(config: Config) -> Strategy:
    """Return the strategy of a resolved config; that of `ddp`, which averages gradients itself, is `independent`.

    Raises:
        UsageError: an unknown strategy, setting or trigger, or a value out of range.
    """
    names = sorted({*STRATEGIES, *BASELINES, *ASYNCHRONOUS})
    if config.strategy not in names:
        raise UsageError(f"unknown strategy {config.strategy!r}; expected one of {', '.join(names)}")
    kind = STRATEGIES["independent" if config.strategy == DDP else config.strategy]
    if config.strategy in BASELINES:
        if config.when is not None or config.settings:
            raise UsageError(f"{config.strategy} takes neither --when nor --set")
        return kind()
    when, steps = trigger_of(config)
    strategy = kind(when=when, **parse_settings(kind, config.settings))
    return strategy if steps is None else Warmup(strategy, steps)
