"""Several rules on the same batch from the same policy: their steps side by side."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from surefoot import config
from surefoot.annealing import annealed
from surefoot.batch import Batch, standardised
from surefoot.errors import SettingError, did_you_mean
from surefoot.geometry import Movement, fisher_operator, movement, unmoved
from surefoot.history import read
from surefoot.kept import Inputs, load
from surefoot.policy import Policy, flatten
from surefoot.report.replay import Trace
from surefoot.resuming import begun_with
from surefoot.rules import RULES, Memory, Rule, UpdateReport
from surefoot.settings import as_json
from surefoot.sharding import check_devices, placed, spread_over

SAMPLED_RULES = tuple(name for name, settings in config.RULES.items() if not settings.tabular_only)
"""The names of the rules that batches of samples can be given to."""

_TIMES = np.linspace(0, 1.5, 31)
_WHOLE = 20  # where in them the step is as long as it was taken
_REPEATS = 3  # of which the fastest is told
_SAME = 1e-3  # relative: a program of its own rounds otherwise, and minibatches make more of it


@dataclass(frozen=True)
class Step:
    """What one rule did.

    Attributes:
        name: the rule's, told apart where it stands more than once.
        own: whether it is the run's own, with its memory.
        rule: with its settings.
        report: the rule's own.
        moved: movement of the policy that it returned, with gains in reward units, measured in one way for all.
        entropy_change: of the mean entropy, nats.
        vector: the step s taken in parameter space, [P]; 0 where it was refused.
        image: F s, F the old policy's Fisher matrix on the whole batch without damping, [P].
        seconds: of one update, after compilation.
        trace: KL and surrogate gain along the line of the step; None where none was taken.
    """

    name: str
    own: bool
    rule: Rule
    report: UpdateReport
    moved: Movement
    entropy_change: float
    vector: np.ndarray
    image: np.ndarray
    seconds: float
    trace: Trace | None

    @property
    def length(self) -> float:
        """The step's Euclidean norm."""
        return float(np.linalg.norm(self.vector))

    @property
    def fisher_length(self) -> float:
        """sqrt(s^T F s): half its square is the quadratic model of the step's KL."""
        return math.sqrt(max(float(self.vector @ self.image), 0.0))

    def as_dict(self) -> dict[str, Any]:
        """As JSON has it, without the step itself."""
        moved = {name: float(value) for name, value in self.moved._asdict().items()}
        trace = None if self.trace is None else {"t": _TIMES.tolist(), **self.trace.along()}
        return {
            "name": self.name,
            "own": self.own,
            "rule": self.rule.settings_class.name,
            "settings": as_json(self.rule.settings()),
            "accepted": bool(self.report.accepted),
            "backtracks": int(self.report.backtracks),
            "predicted_gain": float(self.report.predicted_gain),
            "predicted_kl": float(self.report.predicted_kl),
            **moved,
            "entropy_change": self.entropy_change,
            "step_length": self.length,
            "fisher_length": self.fisher_length,
            "seconds": self.seconds,
            "path": trace,
        }


@dataclass(frozen=True)
class Repetition:
    """Whether the run's own rule took the step again that the run recorded.

    Attributes:
        same: whether what its report says of the step is what was recorded, to a thousandth; None where nothing is.
        difference: the largest relative one.
        where: the number of the report that it is in.
    """

    same: bool | None
    difference: float | None = None
    where: str | None = None

    def __str__(self) -> str:
        if self.same is None:
            return "metrics.jsonl has no such update to compare the run's own step with"
        if self.same:
            return f"the run's own step repeats the recorded one (largest relative difference {self.difference:.1g})"
        return f"the run's own step is NOT the recorded one: {self.where} differs by {self.difference:.1%}"


@dataclass(frozen=True)
class Replay:
    """The steps of several rules from one policy on one batch.

    Attributes:
        run: the run's folder.
        update: which of its updates.
        rows: how many of the batch have weight.
        repetition: whether the first step is the recorded one.
        steps: of the run's own rule, then of each other.
        cosine: between the steps in parameter space, [steps, steps]; NaN where one is of length 0.
        fisher_cosine: the same in the Fisher metric of the old policy.
    """

    run: Path
    update: int
    rows: int
    repetition: Repetition
    steps: list[Step]
    cosine: np.ndarray
    fisher_cosine: np.ndarray

    def as_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "run": str(self.run),
            "update": self.update,
            "rows": self.rows,
            "repetition": vars(self.repetition).copy(),
            "steps": [step.as_dict() for step in self.steps],
            "cosine": _or_null(self.cosine),
            "fisher_cosine": _or_null(self.fisher_cosine),
        }

    def traces(self) -> list[Trace]:
        """What there is to draw."""
        return [step.trace for step in self.steps if step.trace is not None]


def replay(run: str | os.PathLike, *, update: int, rules: Iterable[Rule | str] = SAMPLED_RULES) -> Replay:
    """Apply the run's own rule, with its own memory, and then others, begun anew, to one of the run's batches.

    Every rule is given the policy before the update, the batch and the key that the run's rule was given. A rule that
    is the run's own, setting by setting, is not applied again. The batch is spread over as many devices as the run's
    batches were, as which rows a subsample or a minibatch takes depends on them.

    Arguments:
        run: a run's folder that was trained with `keep_batches`.
        update: one of those that it kept (`kept_updates`).
        rules: such as `surefoot.TRPO(radius=0.02)`, or rules' names for their defaults.

    Raises RunError where the run, or what it kept, cannot be read or does not fit together; SettingError for a rule
    that batches of samples cannot be given to, and where there are fewer devices than the run had.
    """
    folder = Path(run)
    recipe, own, settings = begun_with(folder)
    others = [_made(rule) for rule in rules]
    if type(update) is not int or update < 1:
        raise SettingError(f"update must be a whole number, at least 1, but {update!r} came")
    devices = settings.collection.devices
    check_devices(devices)
    inputs = load(folder, recipe.identity, update, own, settings.network)
    others = [rule for rule in others if rule.settings() != own.settings()]
    starts = [rule.init(inputs.policy) for rule in others]  # refused before anything is compiled
    own = annealed(own, float(inputs.share))
    own_name = f"{own.settings_class.name} (run)"
    with spread_over(devices):
        inputs = inputs._replace(batch=placed(inputs.batch, axis=0))
        steps = [_step(own_name, True, own, inputs, inputs.memory)]
        for rule, memory in zip(others, starts, strict=True):
            steps.append(_step(_free(rule.settings_class.name, steps), False, rule, inputs, memory))
    repetition = _repetition(folder, update, steps[0].report)
    rows = int(np.sum(np.asarray(inputs.batch.weight) > 0))
    cosine, fisher_cosine = (_cosines(steps, image) for image in ("vector", "image"))
    return Replay(folder, update, rows, repetition, steps, cosine, fisher_cosine)


def _made(rule: Rule | str) -> Rule:
    if isinstance(rule, str):
        if rule not in SAMPLED_RULES:
            near = did_you_mean(rule, SAMPLED_RULES)
            raise SettingError(f"rules must be among {', '.join(SAMPLED_RULES)}, but {rule!r} came{near}")
        return RULES[rule]()
    if rule.settings_class.tabular_only:
        raise SettingError(f"rules must be among {', '.join(SAMPLED_RULES)}, but {rule.settings_class.name!r} came")
    return rule


def _free(name: str, steps: list[Step]) -> str:
    """The name, numbered where it is taken."""
    taken = {step.name for step in steps}
    numbered = (f"{name} {number}" for number in range(2, len(steps) + 2))
    return name if name not in taken else next(other for other in numbered if other not in taken)


@jax.jit
def _update(
    rule: Rule, policy: Policy, memory: Memory, batch: Batch, key: PRNGKeyArray
) -> tuple[Float[Array, " P"], UpdateReport, Movement, Float[Array, ""]]:
    """The step, the rule's report, how the policy moved, and how its mean entropy changed."""
    updated, _, report = rule.update(policy, memory, batch, key)
    moved = _measured(updated, batch)
    step = flatten(updated)[0] - flatten(policy)[0]
    return step, report, moved, jnp.where(report.accepted, moved.entropy - unmoved(batch).entropy, 0)


def _measured(policy: Policy, batch: Batch) -> Movement:
    """The movement, with gains in reward units. The mean advantage is taken out of them: as ratios need not sum to 1,
    it would only add noise."""
    centred, unit = standardised(batch)
    moved = movement(policy, centred)
    return moved._replace(surrogate_gain=moved.surrogate_gain * unit)


@jax.jit
def _along(policy: Policy, step: Float[Array, " P"], batch: Batch) -> Movement:
    """The movement of the policy at each of `_TIMES` along a step; every leaf is [times]."""
    theta, rebuild = flatten(policy)
    return jax.lax.map(lambda t: _measured(rebuild(theta + t * step), batch), jnp.asarray(_TIMES, theta.dtype))


@jax.jit
def _fisher_product(policy: Policy, batch: Batch, step: Float[Array, " P"]) -> Float[Array, " P"]:
    return fisher_operator(policy, batch)(step)


def _step(name: str, own: bool, rule: Rule, inputs: Inputs, memory: Memory) -> Step:
    arguments = rule, inputs.policy, memory, inputs.batch, inputs.key
    vector, report, moved, entropy_change = jax.device_get(_update(*arguments))
    spent = []
    for _ in range(_REPEATS):
        begun = time.perf_counter()
        jax.block_until_ready(_update(*arguments))
        spent.append(time.perf_counter() - begun)
    image = _fisher_product(inputs.policy, inputs.batch, vector)
    return Step(
        name=name,
        own=own,
        rule=rule,
        report=report,
        moved=moved,
        entropy_change=float(entropy_change),
        vector=vector.astype(np.float64),
        image=np.asarray(image, np.float64),
        seconds=min(spent),
        trace=_trace(name, rule, inputs, vector) if vector.any() else None,
    )


def _trace(name: str, rule: Rule, inputs: Inputs, vector: np.ndarray) -> Trace:
    moved = jax.device_get(_along(inputs.policy, vector, inputs.batch))
    radius = float(getattr(rule, "radius", np.nan)) if rule.settings_class.trust_region == "kl" else None
    return Trace(name, moved.kl, moved.surrogate_gain, _WHOLE, radius)


def _cosines(steps: list[Step], image: str) -> np.ndarray:
    """Between the steps, in the metric whose product with each is its `image`."""
    products = np.stack([step.vector for step in steps]) @ np.stack([getattr(step, image) for step in steps]).T
    lengths = np.sqrt(np.maximum(np.diag(products), 0))
    with np.errstate(divide="ignore", invalid="ignore"):
        cosines = products / np.outer(lengths, lengths)
    return np.where(np.outer(lengths, lengths) > 0, np.clip(cosines, -1, 1), np.nan)


def _or_null(matrix: np.ndarray) -> list[list[float | None]]:
    return [[None if math.isnan(value) else value for value in row] for row in matrix.tolist()]


def _repetition(folder: Path, update: int, report: UpdateReport) -> Repetition:
    """How the report compares with what metrics.jsonl has of the update. Raises RunError where that cannot be read."""
    row = next((row for row in read(folder).rows if row.get("update") == update), None)
    # How the step was solved for is no part of it: a residual is mostly rounding.
    told = {name: value for name, value in report._asdict().items() if not name.startswith("solver_")}
    numbers = {name: np.asarray(value).item() for name, value in told.items() if np.ndim(value) == 0}
    if row is None or not numbers.keys() <= row.keys():
        return Repetition(None)
    # An entropy may be next to 0 by itself.
    least = {"entropy": 1.0}
    differences = {name: _difference(value, row[name], least.get(name, 0.0)) for name, value in numbers.items()}
    where = max(differences, key=lambda name: differences[name])
    return Repetition(differences[where] <= _SAME, differences[where], where)


def _difference(one: float, recorded: Any, least: float) -> float:
    """Relative to the larger one, or to `least`; infinite where only one of them is finite, or one is no number."""
    try:
        other = float(recorded)
    except (TypeError, ValueError, OverflowError):
        return math.inf
    if one == other or (math.isnan(one) and math.isnan(other)):
        return 0.0
    if not (math.isfinite(one) and math.isfinite(other)):
        return math.inf
    return abs(one - other) / max(abs(one), abs(other), least)
