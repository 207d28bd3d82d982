"""What every rule is, and what every rule reports."""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from typing import Any, ClassVar, NamedTuple, Self, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree

from surefoot import config
from surefoot.batch import Batch
from surefoot.geometry import Movement, unmoved
from surefoot.policy import Policy, flatten

Memory: TypeAlias = PyTree
"""What a rule carries from one update to the next; () where it carries nothing."""


class UpdateReport(NamedTuple):
    """What an update did: the same fields for every rule. Gains are those of one step, in reward units.

    The fields from `surrogate_gain` to `effective_sample_size` are measured on the policy that the
    update returned, so they are those of no move at all when the update was refused.

    Attributes:
        accepted: whether the policy was changed.
        scale: share of the proposed step that was taken: 1 unless it was shortened, 0 where it was refused.
        predicted_gain: g^T step, the linear model of the surrogate gain of the proposed step.
        surrogate_gain: of the returned policy on the batch, sum of base (pi' - pi) A.
        predicted_kl: step^T F step / 2, the quadratic model of the KL of the proposed step, nats.
        kl: mean KL(old || new), nats.
        reverse_kl: mean KL(new || old), nats.
        max_kl: largest KL(old || new) over the batch's states, nats.
        tv: mean total variation (an upper bound where the head has no closed form).
        max_tv: largest total variation.
        entropy: mean entropy of the returned policy, nats.
        effective_sample_size: of the importance weights, in rows.
        step_length: Euclidean norm of the step that was taken, in parameter space.
        backtracks: how many times the proposed step was shortened.
        solver_iterations: Fisher-vector products taken while solving.
        solver_residual: the solve's relative residual; 0 where nothing was solved.
        multiplier: Lagrange multiplier of the constraint at the full step: what one more unit of radius
            would gain to first order, in reward units; inf where nothing could be proposed.
        multiplier_path: every lambda that the update tried, in order, [K]; of one entry for rules that
            solve for it.
    """

    accepted: Bool[Array, ""]
    scale: Float[Array, ""]
    predicted_gain: Float[Array, ""]
    surrogate_gain: Float[Array, ""]
    predicted_kl: Float[Array, ""]
    kl: Float[Array, ""]
    reverse_kl: Float[Array, ""]
    max_kl: Float[Array, ""]
    tv: Float[Array, ""]
    max_tv: Float[Array, ""]
    entropy: Float[Array, ""]
    effective_sample_size: Float[Array, ""]
    step_length: Float[Array, ""]
    backtracks: Int[Array, ""]
    solver_iterations: Int[Array, ""]
    solver_residual: Float[Array, ""]
    multiplier: Float[Array, ""]
    multiplier_path: Float[Array, " K"]


class Proposal(NamedTuple):
    """A step that a rule wants to take, and how it came to it. Gains in units of the batch it was made on.

    `step` is the whole proposed step [P] before `scale`, the share that the rule settled on.
    """

    step: Float[Array, " P"]
    scale: Float[Array, ""]
    acceptable: Bool[Array, ""]
    predicted_gain: Float[Array, ""]
    predicted_kl: Float[Array, ""]
    multiplier: Float[Array, ""]
    backtracks: Int[Array, ""]
    solver_iterations: Int[Array, ""]
    solver_residual: Float[Array, ""]


class Rule(eqx.Module):
    """Abstract: a way of improving a policy from a batch.

    Pure: `init(policy) -> memory` and `update(policy, memory, batch, key) -> (policy, memory, report)`
    return everything that they change, and can be compiled, differentiated over settings and vectorised.
    The numeric settings are array leaves, so a schedule or a sweep does not recompile.
    """

    settings_class: ClassVar[type[config.RuleSettings]]

    def __check_init__(self) -> None:
        self.settings()

    def settings(self) -> Any:
        """The same settings as a plain dataclass of `surefoot.config`.

        Raises SettingError where one is outside its legal range. Settings that hold one value a lane or
        are being traced cannot be compared, and are passed by.
        """
        values = {item.name: getattr(self, item.name) for item in dataclasses.fields(self.settings_class)}
        known = {
            name: value.item() if isinstance(value, (np.ndarray, np.generic)) else value
            for name, value in values.items()
            if not isinstance(value, jax.Array) and np.ndim(value) == 0
        }
        return self.settings_class(**known)

    def cast(self, policy: Policy) -> Self:
        """The rule with its numeric settings in the floating-point type of the policy's parameters."""
        theta, _ = flatten(policy)
        return jax.tree.map(lambda leaf: jnp.asarray(leaf, theta.dtype), self)

    @abstractmethod
    def init(self, policy: Policy) -> Memory:
        """What the first update starts from."""

    @abstractmethod
    def update(
        self, policy: Policy, memory: Memory, batch: Batch, key: PRNGKeyArray
    ) -> tuple[Policy, Memory, UpdateReport]:
        """One update. A refused one returns the old policy and memory, bit for bit."""


def numeric(default: float | None) -> Any:
    """A rule's numeric setting: an array leaf of no shape (or one value a lane under vmap)."""
    return eqx.field(default=default, converter=_as_leaf)


def _as_leaf(value: Any) -> Any:
    # NumPy keeps 64 bits until the policy's own type is known; JAX arrays and tracers pass as they are.
    # What is not a number stays, for the settings' own check to name.
    if isinstance(value, (bool, str)) or value is None or isinstance(value, jax.Array):
        return value
    return np.float64(value) if np.ndim(value) == 0 else np.asarray(value, np.float64)


def kept(accepted: Bool[Array, ""], after: Memory, before: Memory) -> Memory:
    """The memory after an update: the one before it, bit for bit, where it was refused."""
    return jax.tree.map(lambda new, old: jnp.where(accepted, new, old), after, before)


def choice(default: Any) -> Any:
    """A rule's setting that decides the shape of the program; changing it compiles anew."""
    return eqx.field(default=default, static=True)


def conclude(
    policy: Policy, batch: Batch, proposal: Proposal, moved: Movement, *, unit: Float[Array, ""]
) -> tuple[Policy, UpdateReport]:
    """Take the proposal or refuse it, and report what that did.

    `moved` is the movement of the policy at theta + scale * step. Refused are a proposal that is not
    acceptable, a step of length 0, and any step or candidate that is not finite; then the old policy comes
    back bit for bit. `unit` turns the batch's gains into reward units.
    """
    theta, rebuild = flatten(policy)
    step = proposal.scale * proposal.step
    length = jnp.linalg.norm(step)
    candidate = theta + step
    # A tabular policy's impossible actions have logits of -inf, which no step changes.
    finite = jnp.all(jnp.isfinite(candidate) | ~jnp.isfinite(theta)) & jnp.all(jnp.isfinite(step))
    finite &= jnp.isfinite(moved.kl) & jnp.isfinite(moved.surrogate_gain)
    accepted = proposal.acceptable & finite & (length > 0)
    report = report_of(batch, proposal, moved, accepted=accepted, length=length, unit=unit)
    return rebuild(jnp.where(accepted, candidate, theta)), report


def report_of(
    batch: Batch,
    proposal: Proposal,
    moved: Movement,
    *,
    accepted: Bool[Array, ""],
    length: Float[Array, ""],
    unit: Float[Array, ""],
) -> UpdateReport:
    """The report of a step of Euclidean `length` that was accepted or not; `moved` is the candidate's."""
    told: Movement = jax.tree.map(lambda new, old: jnp.where(accepted, new, old), moved, unmoved(batch))
    return UpdateReport(
        accepted=accepted,
        scale=jnp.where(accepted, proposal.scale, 0),
        predicted_gain=proposal.predicted_gain * unit,
        surrogate_gain=told.surrogate_gain * unit,
        predicted_kl=proposal.predicted_kl,
        kl=told.kl,
        reverse_kl=told.reverse_kl,
        max_kl=told.max_kl,
        tv=told.tv,
        max_tv=told.max_tv,
        entropy=told.entropy,
        effective_sample_size=told.effective_sample_size,
        step_length=jnp.where(accepted, length, 0),
        backtracks=proposal.backtracks,
        solver_iterations=proposal.solver_iterations,
        solver_residual=proposal.solver_residual,
        multiplier=proposal.multiplier * unit,
        multiplier_path=(proposal.multiplier * unit)[None],
    )
