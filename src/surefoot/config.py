"""Every setting of surefoot: its default, its legal range and its meaning, once.

Plain dataclasses that import nothing slow. The command line makes its options and its help from them,
`config.json` is written from them, and the rules of `surefoot.rules` take their defaults from them.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, ClassVar, Literal

from surefoot.errors import SettingError, did_you_mean, shown
from surefoot.settings import Following, Settings, check, field_of, setting


@dataclass(frozen=True)
class RuleSettings(Settings):
    """Abstract: the settings of one rule."""

    name: ClassVar[str]
    trust_region: ClassVar[Literal["kl", "euclidean", "none"]]
    tabular_only: ClassVar[bool] = False


_RADIUS = "Trust region: the largest KL that an update may cause over the batch's states, in nats."
_DAMPING = (
    "Added to the Fisher matrix's diagonal while solving (not while scaling the step). 0 is refused with a subsample."
)
_ITERATIONS = "The most conjugate-gradient iterations of one update."
_TOLERANCE = "Conjugate gradients stop when the residual's norm falls below this share of the gradient's."
_SUBSAMPLE = (
    "Share of the batch's rows, evenly spaced and at least 256, on which the Fisher matrix is taken while solving. "
    "By default every fifth row, or all of them without damping."
)
_SOLVER = (
    "How F x = g is solved: by conjugate gradients, with the matrix formed (small policies), or by the closed form "
    "of a table of logits (finite MDPs only), which ignores damping, iterations, tolerance and subsample."
)
_FISHER = (
    "The matrix of the solve: the metric J^T M J of the distributions, or the empirical one, outer products of the "
    "scores of the actions taken. The step is scaled by the metric either way."
)
_CONSTRAINT = "Whether the radius is for the mean KL over states or for the largest."
_DIVERGENCE = "Which KL: kl is KL(old||new), reverse-kl is KL(new||old)."
_CHUNK = "Rows handled at a time, to bound memory; 0 takes the whole batch at once."
_STANDARDISE = "Centre and scale the advantages on the batch before the step (gains are reported in reward units)."
_EPOCHS = "Passes over the batch of one inner maximisation."
_MINIBATCH = "Rows of each gradient step; 0 takes the whole batch."
_STEP_SIZE = "Adam's step size."
_GRADIENT_NORM = "Gradients longer than this are scaled down to it; none: never."
_STOP = "End the passes once the mean KL(old||new) exceeds this many nats; none: never."
_INNER = (
    "How the inner maximisation is done: by gradient steps, or by its closed form (finite MDPs only), which ignores "
    "epochs, minibatch, step_size, max_gradient_norm and stop."
)


@dataclass(frozen=True)
class PG(RuleSettings):
    """Policy gradient with a Euclidean trust region: theta + sqrt(radius/|g|^2) g."""

    name: ClassVar[str] = "pg"
    trust_region: ClassVar[Literal["kl", "euclidean"]] = "euclidean"
    radius: float = setting(
        0.003, "Trust region: the squared Euclidean norm of the step in parameter space, |step|^2 <= radius.", above=0
    )
    chunk: int = setting(0, _CHUNK, at_least=0)
    standardise: bool = setting(True, _STANDARDISE)


def default_subsample(undamped: bool) -> Following:
    """Every fifth row; every row without damping, where the gradient might leave the range of a part's matrix."""
    return Following(1.0 if undamped else 0.2)


@dataclass(frozen=True)
class _NaturalSettings(RuleSettings):
    """Abstract: what the rules along F^-1 g share."""

    trust_region: ClassVar[Literal["kl", "euclidean", "none"]] = "kl"
    radius: float = setting(0.02, _RADIUS, above=0)
    solver: Literal["cg", "dense", "tabular"] = setting("cg", _SOLVER)
    fisher: Literal["metric", "empirical"] = setting("metric", _FISHER)
    constraint: Literal["mean", "max"] = setting("mean", _CONSTRAINT)
    damping: float = setting(1.0, _DAMPING, at_least=0)
    iterations: int = setting(10, _ITERATIONS, at_least=1)
    tolerance: float = setting(1e-5, _TOLERANCE, at_least=0, below=1)
    subsample: float | None = setting(None, _SUBSAMPLE, above=0, at_most=1)
    chunk: int = setting(0, _CHUNK, at_least=0)
    standardise: bool = setting(True, _STANDARDISE)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.subsample is None:
            object.__setattr__(self, "subsample", default_subsample(self.damping == 0))


@dataclass(frozen=True)
class NPG(_NaturalSettings):
    """Natural policy gradient: the step along F^-1 g whose quadratic KL is the radius."""

    name: ClassVar[str] = "npg"
    eta: float | None = setting(
        None,
        "Length of the step along F^-1 g, in place of the radius: 0 stays, larger is greedier. Per unit of the "
        "advantage as the step sees it: in standard deviations, or in reward units where nothing is standardised.",
        at_least=0,
    )


@dataclass(frozen=True)
class TRPO(_NaturalSettings):
    """Trust region policy optimisation: the natural step, backtracked until the true KL and gain agree."""

    name: ClassVar[str] = "trpo"
    radius: float = setting(0.04, _RADIUS, above=0)
    divergence: Literal["kl", "reverse-kl"] = setting("kl", _DIVERGENCE)
    backtracks: int = setting(10, "The most times that a refused candidate is shortened.", at_least=0)
    shrink: float = setting(0.8, "Factor by which a refused candidate is shortened.", above=0, below=1)
    rescale: bool = setting(
        True, "Shorten a candidate outside the radius only to where its KL, growing quadratically, meets the radius."
    )
    accept: float = setting(
        0.1, "Share of the linearly predicted gain that a candidate must really gain.", at_least=0, below=1
    )


@dataclass(frozen=True)
class KLPenalty(RuleSettings):
    """The surrogate less lambda times the KL, with lambda fixed or adapted to a radius."""

    name: ClassVar[str] = "kl-penalty"
    trust_region: ClassVar[Literal["kl", "euclidean", "none"]] = "kl"
    radius: float = setting(0.01, _RADIUS, above=0)
    multiplier: float = setting(
        1.0, "Lambda of the first update, per unit of the advantage as the step sees it.", above=0
    )
    adapt: Literal["none", "doubling", "sqrt"] = setting(
        "doubling",
        "How lambda follows the KL: not at all, doubled above 1.5 radius and halved below radius/1.5, or "
        "times sqrt(KL/radius).",
    )
    divergence: Literal["kl", "reverse-kl"] = setting("kl", _DIVERGENCE)
    inner: Literal["gradient", "closed-form"] = setting("gradient", _INNER)
    epochs: int = setting(10, _EPOCHS, at_least=1)
    minibatch: int = setting(256, _MINIBATCH, at_least=0)
    step_size: float = setting(3e-4, _STEP_SIZE, above=0)
    max_gradient_norm: float | None = setting(None, _GRADIENT_NORM, above=0)
    stop: float | None = setting(0.04, _STOP, above=0)
    chunk: int = setting(0, _CHUNK, at_least=0)
    standardise: bool = setting(True, _STANDARDISE)


@dataclass(frozen=True)
class Dual(RuleSettings):
    """The KL Lagrangian by dual gradient descent: maximise in the policy, then move lambda towards the radius."""

    name: ClassVar[str] = "dual"
    trust_region: ClassVar[Literal["kl", "euclidean", "none"]] = "kl"
    radius: float = setting(0.01, _RADIUS, above=0)
    multiplier: float = setting(
        1.0, "Lambda of the first update, per unit of the advantage as the step sees it.", above=0
    )
    descent: Literal["multiplicative", "additive"] = setting(
        "multiplicative", "lambda times sqrt(KL/radius), or max(0, lambda + multiplier_step (KL - radius))."
    )
    multiplier_step: float | None = setting(
        None,
        "Step of the additive descent. By default lambda^3 over the variance of the advantages, half of the largest "
        "stable one, and never more than a quartering of lambda.",
        above=0,
    )
    outer: int = setting(10, "How often lambda moves in one update.", at_least=1)
    divergence: Literal["kl", "reverse-kl"] = setting("reverse-kl", _DIVERGENCE)
    inner: Literal["gradient", "closed-form"] = setting("gradient", _INNER)
    epochs: int = setting(1, _EPOCHS, at_least=1)
    minibatch: int = setting(256, _MINIBATCH, at_least=0)
    step_size: float = setting(3e-4, _STEP_SIZE, above=0)
    max_gradient_norm: float | None = setting(None, _GRADIENT_NORM, above=0)
    stop: float | None = setting(0.04, _STOP, above=0)
    chunk: int = setting(0, _CHUNK, at_least=0)
    standardise: bool = setting(True, _STANDARDISE)


@dataclass(frozen=True)
class PPO(RuleSettings):
    """Proximal policy optimisation: the surrogate with clipped ratios, by minibatch gradient steps."""

    name: ClassVar[str] = "ppo"
    trust_region: ClassVar[Literal["kl", "euclidean", "none"]] = "none"
    clip: float = setting(0.2, "How far a ratio may leave 1 before its row stops pulling further.", above=0, below=1)
    epochs: int = setting(10, _EPOCHS, at_least=1)
    minibatch: int = setting(64, _MINIBATCH, at_least=0)
    step_size: float = setting(3e-4, _STEP_SIZE, above=0)
    max_gradient_norm: float | None = setting(0.5, _GRADIENT_NORM, above=0)
    stop: float | None = setting(None, _STOP, above=0)
    chunk: int = setting(0, _CHUNK, at_least=0)
    standardise: bool = setting(True, _STANDARDISE)


@dataclass(frozen=True)
class PI(RuleSettings):
    """Policy iteration: act greedily on the advantages. For finite MDPs only."""

    name: ClassVar[str] = "pi"
    trust_region: ClassVar[Literal["kl", "euclidean", "none"]] = "none"
    tabular_only: ClassVar[bool] = True


RULES: dict[str, type[RuleSettings]] = {rule.name: rule for rule in (TRPO, NPG, PG, KLPenalty, Dual, PPO, PI)}
"""The settings of every rule, by the name that the command line uses."""


_CONVOLUTION = "Convolve images (observations that are one Box with three axes) before the hidden layers."
_CHANNELS = (
    "Channels of each convolution of an image. By default 16; from 36 pixels each way 32 64 64; below 5 no convolution."
)
_KERNELS = "Width and height of each convolution's kernel. By default 3; of the three 8 4 3."
_STRIDES = "Pixels between two places of each convolution's kernel. By default 1; of the three 4 2 1."


@dataclass(frozen=True)
class Network(Settings):
    """The policy's network: a multilayer perceptron on the normalised observation, after convolutions of an image."""

    hidden: tuple[int, ...] = setting((64, 64), "Width of each hidden layer.", at_least=1, at_most=65536)
    activation: Literal["tanh", "relu", "silu", "elu"] = setting("tanh", "The hidden layers' activation.")
    convolution: bool = setting(True, _CONVOLUTION)
    channels: tuple[int, ...] | None = setting(None, _CHANNELS, at_least=1, at_most=4096)
    kernels: tuple[int, ...] | None = setting(None, _KERNELS, at_least=1, at_most=256)
    strides: tuple[int, ...] | None = setting(None, _STRIDES, at_least=1, at_most=256)
    log_std: float = setting(-0.75, "Initial log standard deviation of a Gaussian policy.", at_least=-20, at_most=5)
    least_log_std: float = setting(
        -1.5,
        "No log standard deviation falls below this, so that a KL radius leaves the mean room.",
        at_least=-20,
        at_most=5,
    )
    normalise: bool = setting(True, "Normalise observations by their running mean and standard deviation.")


@dataclass(frozen=True)
class Critic(Settings):
    """The value function and its fit."""

    hidden: tuple[int, ...] = setting((64, 64), "Width of each hidden layer.", at_least=1, at_most=65536)
    activation: Literal["tanh", "relu", "silu", "elu"] = setting("tanh", "The hidden layers' activation.")
    convolution: bool = setting(True, _CONVOLUTION)
    channels: tuple[int, ...] | None = setting(None, _CHANNELS, at_least=1, at_most=4096)
    kernels: tuple[int, ...] | None = setting(None, _KERNELS, at_least=1, at_most=256)
    strides: tuple[int, ...] | None = setting(None, _STRIDES, at_least=1, at_most=256)
    step_size: float = setting(1e-3, "Adam's step size.", above=0)
    epochs: int = setting(4, "Passes over the batch after each update.", at_least=1)
    minibatch: int = setting(128, "Transitions in each of the fit's minibatches.", at_least=1)


@dataclass(frozen=True)
class Estimator(Settings):
    """From rewards and values to advantages."""

    discount: float = setting(0.99, "Discount factor of the return.", at_least=0, below=1)
    gae_lambda: float = setting(0.97, "Lambda of generalised advantage estimation.", at_least=0, at_most=1)
    state_weighting: Literal["undiscounted", "discounted"] = setting(
        "undiscounted", "Weight states equally, or by discount^(steps since reset) as the gradient's definition has it."
    )


@dataclass(frozen=True)
class Collection(Settings):
    """Where experience comes from, and how much of it an update sees."""

    source: Literal["auto", "gymnasium", "envpool"] = setting(
        "auto", "Which library steps the environments; auto takes EnvPool where it has the task."
    )
    envs: int = setting(32, "Environments stepped side by side.", at_least=1, at_most=65536)
    horizon: int = setting(64, "Steps of each environment between two updates.", at_least=1, at_most=10_000_000)
    vectorisation: Literal["auto", "sync", "async"] = setting(
        "auto", "Step Gymnasium environments in this process (sync), one process each (async), or as the first is slow."
    )
    restart_every: int | None = setting(
        None,
        "Steps of each environment after which all are rebuilt from a new seed (bounds what a resume replays). "
        "By default ten episode limits.",
        at_least=1,
    )
    step_seconds: float | None = setting(
        300.0,
        "Seconds that one step or reset of an environment may take before the run is given up; none: any time. "
        "EnvPool's steps are not watched.",
        above=0,
        at_most=1_000_000,
    )
    devices: int | None = setting(
        None,
        "Devices over which an update's batch is spread, along its environments. By default one.",
        at_least=1,
        at_most=65536,
    )
    workers: int | None = setting(
        None,
        "Ray workers that collect, each with its share of the environments, of which there is at least one each; of "
        "several runs, the workers that each make runs. none: this process.",
        at_least=1,
        at_most=65536,
    )
    ray_address: str | None = setting(
        None, "Ray cluster that the workers are on: auto for the one at hand; none: RAY_ADDRESS, or this machine."
    )
    worker_seconds: float | None = setting(
        600.0,
        "Seconds that a worker may take to begin, or over its share of an update, before another takes its place; "
        "none: any time.",
        above=0,
        at_most=1_000_000,
    )
    enough: float = setting(
        1.0,
        "Share of an update's transitions with which it goes on: workers that are still at theirs then are stopped, "
        "and what is missing is made up for by weights. 1 waits for all.",
        above=0,
        at_most=1,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.workers is None:
            for name, default in (("ray_address", None), ("enough", 1.0)):
                if (given := getattr(self, name)) != default:
                    raise SettingError(refused_without_workers(name, default, given))
        elif self.workers > self.envs:
            raise SettingError(
                f"workers must be at most envs, {self.envs}, each with an environment of its own, but {self.workers} "
                "came; take more environments"
            )


def refused_without_workers(name: str, default: Any, given: Any) -> str:
    """What is said of a setting that only workers have."""
    return f"{name} must be {default} without workers (say how many, as in workers=4), but {shown(given)} came"


def refuse_in_a_study(settings: Mapping[str, Any]) -> None:
    """Raise SettingError for a setting of workers that collect, which a study has none of."""
    if (given := settings.get("enough", 1.0)) != 1:
        raise SettingError(f"enough must be 1.0 in a study, whose workers make a run each, but {shown(given)} came")


FEWEST_ENVIRONMENTS = 8
"""Fewer environments than these have too few different resamples for an interval of a gain."""


@dataclass(frozen=True)
class Certification(Settings):
    """The account of every update, and what is done about a bad one."""

    holdout: float = setting(
        0.0,
        "Share of the environments, drawn anew for each update, that its step does not see; what it gains on them is "
        "an unbiased surrogate gain.",
        at_least=0,
        below=1,
    )
    confidence: float = setting(0.95, "Confidence of the intervals of gains.", above=0, below=1)
    guard: bool = setting(
        False,
        "Take an update back whose realised gain is negative beyond the guard's confidence, and go on from the "
        "policy before it with half the radius (step sizes times sqrt 1/2), which then grows back by 2% an update.",
    )
    guard_confidence: float = setting(
        0.99, "How sure the guard must be (one-sided) that an update did harm.", at_least=0.5, below=1
    )


_MOST_WEIGHTS = 2**28  # a gigabyte of them, and as much again for each moment of the optimiser
_MOST_ROWS = 2**31 - 1  # as many as an index of 32 bits reaches


@dataclass(frozen=True)
class Run(Settings):
    """One whole run."""

    steps: int = setting(1_000_000, "Environment steps to train for.", at_least=1)
    seed: int = setting(0, "Seed of everything random in the run.", at_least=0, at_most=2**32 - 1)
    checkpoint_seconds: float = setting(
        30.0, "Seconds of training between two checkpoints, from which a run that was stopped goes on.", at_least=0
    )
    evaluation_episodes: int = setting(20, "Episodes of every deterministic evaluation, the final one too.", at_least=1)
    evaluate_every: int | None = setting(
        None,
        "Evaluate the policy after the first update that reaches each multiple of this many steps, into "
        "evaluations.jsonl. By default only in the end.",
        at_least=1,
    )
    anneal: float = setting(
        0.05,
        "Share of the trust region (of the radius, or of a step size's square) left at the run's end; 1 keeps all.",
        above=0,
        at_most=1,
    )
    anneal_from: float = setting(
        0.4, "Share of the run after which the trust region shrinks, linearly.", at_least=0, below=1
    )
    keep_batches: int = setting(
        0,
        "Updates whose inputs are kept for `surefoot replay`, spread evenly over the run, its first and last among "
        "them; of one, that in the middle.",
        at_least=0,
        at_most=1000,
    )
    network: Network = field(default_factory=Network, metadata={"help": Network.__doc__})
    critic: Critic = field(default_factory=Critic, metadata={"help": Critic.__doc__})
    estimator: Estimator = field(default_factory=Estimator, metadata={"help": Estimator.__doc__})
    collection: Collection = field(default_factory=Collection, metadata={"help": Collection.__doc__})
    certification: Certification = field(default_factory=Certification, metadata={"help": Certification.__doc__})

    def check_together(self) -> None:
        """Refuse settings that are legal alone but not together. Raises SettingError."""
        _ = self.held_out
        if self.network.log_std < self.network.least_log_std:
            raise SettingError(
                f"log_std must be at least least_log_std, {self.network.least_log_std:g}, "
                f"but {self.network.log_std:g} came; lower both"
            )
        for name, hidden in (("hidden", self.network.hidden), ("critic_hidden", self.critic.hidden)):
            weights = sum(before * after for before, after in pairwise(hidden))
            if weights > _MOST_WEIGHTS:
                raise SettingError(f"{name} must have at most {_MOST_WEIGHTS} weights, but {weights} came; take less")
        if self.collection.envs * self.collection.horizon > _MOST_ROWS:
            raise SettingError(
                f"envs times horizon must be at most {_MOST_ROWS} steps an update, but "
                f"{self.collection.envs} times {self.collection.horizon} came; shorten the horizon"
            )
        if self.collection.envs % (self.collection.devices or 1):
            raise SettingError(
                f"devices must divide envs, {self.collection.envs}, so that each has as many environments, "
                f"but {self.collection.devices} came"
            )
        if self.certification.guard and self.collection.envs < FEWEST_ENVIRONMENTS:
            raise SettingError(
                f"guard needs at least {FEWEST_ENVIRONMENTS} environments for an interval of the gain, "
                f"but envs {self.collection.envs} came"
            )

    @property
    def held_out(self) -> int:
        """How many environments each update's step does not see. Raises SettingError where none would be left."""
        envs, share = self.collection.envs, self.certification.holdout
        held = max(1, round(share * envs)) if share else 0
        if held >= envs:
            raise SettingError(
                f"holdout must leave an environment to step on, but {share:g} of {envs} came; take more environments"
            )
        return held


def groups(settings_class: type) -> dict[str, type]:
    """The nested settings of `settings_class`, by field name."""
    hints = typing.get_type_hints(settings_class)
    return {
        item.name: hints[item.name]
        for item in dataclasses.fields(settings_class)
        if dataclasses.is_dataclass(hints[item.name])
    }


def make_run(**values: Any) -> Run:
    """A `Run` from plain settings by name, whichever group they belong to.

    A name that two groups share (`hidden`, `activation`) is written `critic_hidden` for the critic.
    Raises SettingError for an unknown name, with the nearest right one.
    """
    arguments: dict[str, Any] = {}
    nested: dict[str, dict[str, Any]] = {name: {} for name in groups(Run)}
    known = run_options()
    for name, value in values.items():
        if name not in known:
            raise SettingError(f"unknown setting {name!r}{did_you_mean(name, known)}")
        group, item = known[name]
        check(option_field(name)[0], item, value, called=name)
        (nested[group] if group else arguments)[item] = value
    collection = nested["collection"]
    if "envs" not in collection and (workers := collection.get("workers")):
        collection["envs"] = max(workers, field_of(Collection, "envs").default)
    for group, kind in groups(Run).items():
        arguments[group] = kind(**nested[group])
    run = Run(**arguments)
    run.check_together()
    return run


def run_options() -> dict[str, tuple[str, str]]:
    """Every plain setting of a run by its public name: (group or "", field)."""
    options: dict[str, tuple[str, str]] = {}
    nested = groups(Run)
    for item in dataclasses.fields(Run):
        if item.name not in nested:
            options[item.name] = ("", item.name)
    for group, kind in nested.items():
        for item in dataclasses.fields(kind):
            public = f"critic_{item.name}" if group == "critic" else item.name
            options[public] = (group, item.name)
    return options


def option_field(name: str) -> tuple[type, dataclasses.Field]:
    """The owning class and field of a run's setting, by its public name."""
    group, item = run_options()[name]
    owner = groups(Run)[group] if group else Run
    return owner, field_of(owner, item)
