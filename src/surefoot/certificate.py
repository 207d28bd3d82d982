"""What is known of a change of policy: what it gains, and what can be proven of that."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from surefoot.bounds import CATALOGUE, Discounted, ToHorizon, exact
from surefoot.divergences import kl, total_variation
from surefoot.errors import ModelError
from surefoot.tabular.evaluation import Evaluation, evaluate
from surefoot.tabular.model import MDP, PolicyLike
from surefoot.tabular.shift import StateShift, overlap, state_shift, zero_times_inf

Array = np.ndarray

_TIE = 1e-12
_ROUNDING = 1e-10


@dataclass(frozen=True)
class Interval:
    """What one bound says of the gain, in units of return.

    Attributes:
        penalty: what the shift of states may take from the surrogate gain, or add to it.
        lower: surrogate gain - penalty.
        upper: surrogate gain + penalty; for `exact`, the gain itself.
        valid: whether the bound's conditions hold; where not, the numbers are what it would say.
    """

    penalty: float
    lower: float
    upper: float
    valid: bool


@dataclass(frozen=True)
class Certificate:
    """The account of a change from an old policy to a new one. Gains are differences of return.

    Attributes:
        kind: `exact` where every number is computed from the model.
        old_return, new_return: J(pi) and J(pi'), not normalised.
        gain: J(pi') - J(pi).
        surrogate_gain: L, what the old policy's advantages and states promise.
        identity_residual: |gain - <d', Abar>/(1-g)|, the performance difference that must be 0.
        bounds: what every bound of `surefoot.bounds.CATALOGUE` says, by id.
        best: id of the largest lower bound among those that need neither the new visitation nor the
            dynamics and whose conditions hold.
        proves_improvement: whether that bound is positive beyond rounding.
        vacuous: whether that bound says no more than that rewards are bounded: that even the least
            reward at every step is not excluded.
        state_shift: TV(p_t, p'_t) and its bounds for t = 0, …, 20 (0, …, T with a horizon).
        mean_kl, max_kl: KL(old || new), mean under the old visitation and largest, nats.
    """

    kind: Literal["exact", "estimated"]
    old_return: float
    new_return: float
    gain: float
    surrogate_gain: float
    identity_residual: float
    bounds: dict[str, Interval]
    best: str
    proves_improvement: bool
    vacuous: bool
    state_shift: StateShift
    mean_kl: float
    max_kl: float

    @property
    def best_bound(self) -> float:
        """The best lower bound on the gain."""
        return self.bounds[self.best].lower

    def as_dict(self) -> dict[str, Any]:
        """The certificate as `surefoot certify --json` prints it."""
        return {
            "old_return": self.old_return,
            "new_return": self.new_return,
            "gain": self.gain,
            "surrogate_gain": self.surrogate_gain,
            "identity_residual": self.identity_residual,
            "bounds": {name: vars(interval).copy() for name, interval in self.bounds.items()},
            "best": {"id": self.best, "lower": self.best_bound},
            "proves_improvement": self.proves_improvement,
            "state_shift": self.state_shift.tv.tolist(),
        }


def certify(old: PolicyLike, new: PolicyLike, evidence: MDP) -> Certificate:
    """What the change from `old` to `new` gains in the finite MDP `evidence`, and what proves it.

    Policies are probabilities [S, A] ([T, S, A] with a horizon) or TabularPolicy. Everything is computed
    in float64 and holds but for rounding (1e-10 of `evidence.scale`). Raises ModelError.
    """
    if not isinstance(evidence, MDP):
        raise ModelError(f"evidence must be a surefoot.tabular.MDP, but {type(evidence).__name__} came")
    mdp = evidence
    before, after = evaluate(mdp, mdp.probabilities(old, "old")), evaluate(mdp, mdp.probabilities(new, "new"))
    # sum_a pi A = 0, so nothing but rounding is subtracted: a policy that stays promises exactly 0.
    expected = np.sum((after.probabilities - before.probabilities) * before.advantage, axis=-1)
    shift = state_shift(mdp, before.probabilities, after.probabilities)
    gain = after.expected_return - before.expected_return
    surrogate_gain = mdp.effective_horizon * float(np.sum(before.visitation * expected))
    residual = abs(gain - mdp.effective_horizon * float(np.sum(after.visitation * expected)))
    divergence = kl(before.probabilities, after.probabilities)
    quantities: Discounted | ToHorizon
    if mdp.horizon is None:
        quantities = _discounted(mdp, before, after, expected)
    else:
        quantities = _to_horizon(mdp, before, after, expected, shift)
    bounds = _intervals(mdp, quantities, surrogate_gain, gain)
    best = _best(bounds, mdp.scale)
    least = mdp.effective_horizon * float(mdp.reward.min()) - before.expected_return
    return Certificate(
        kind="exact",
        old_return=before.expected_return,
        new_return=after.expected_return,
        gain=gain,
        surrogate_gain=surrogate_gain,
        identity_residual=residual,
        bounds=bounds,
        best=best,
        proves_improvement=bounds[best].lower > _ROUNDING * mdp.scale,
        vacuous=bounds[best].lower <= least,
        state_shift=shift,
        mean_kl=float(np.sum(zero_times_inf(before.visitation, divergence))),
        max_kl=float(divergence.max()),
    )


def _discounted(mdp: MDP, before: Evaluation, after: Evaluation, expected: Array) -> Discounted:
    old, new, visitation = before.probabilities, after.probabilities, before.visitation
    apart, divergence, reverse = total_variation(old, new), kl(old, new), kl(new, old)
    return Discounted(
        discount=mdp.discount,
        span=float(np.ptp(expected)),
        largest=float(np.abs(expected).max()),
        largest_advantage=float(np.abs(before.advantage).max()),
        mean_tv=float(visitation @ apart),
        max_tv=float(apart.max()),
        mean_kl=float(np.sum(zero_times_inf(visitation, divergence))),
        mean_reverse_kl=float(np.sum(zero_times_inf(visitation, reverse))),
        max_kl=float(divergence.max()),
        shift=float(total_variation(visitation, after.visitation)),
        overlap=overlap(mdp, old, new),
        transfer=float((visitation - after.visitation) @ expected),
        least_reward=float(mdp.reward.min()),
        largest_reward=float(np.abs(mdp.reward).max()),
    )


def _to_horizon(mdp: MDP, before: Evaluation, after: Evaluation, expected: Array, shift: StateShift) -> ToHorizon:
    times = len(expected)
    return ToHorizon(
        discount=mdp.discount,
        span=np.ptp(expected, axis=1),
        tv=shift.tv[:times],
        overlap=shift.overlap[:times],
        mean_tv=shift.mean_tv[:times],
        geometric=shift.geometric[:times],
        chain_kl=shift.chain_kl[:times],
        max_tv=float(total_variation(before.probabilities, after.probabilities).max()),
        transfer=mdp.effective_horizon * float(np.sum((before.visitation - after.visitation) * expected)),
        least_reward=float(mdp.reward.min()),
        largest_reward=float(np.abs(mdp.reward).max()),
    )


def _intervals(mdp: MDP, quantities: Discounted | ToHorizon, surrogate_gain: float, gain: float) -> dict[str, Interval]:
    intervals = {}
    for bound in CATALOGUE:
        valid = bound.valid(quantities)
        if isinstance(quantities, Discounted):
            penalty = bound.discounted(quantities) * mdp.effective_horizon
        elif bound.to_horizon is not None:
            penalty = bound.to_horizon(quantities)
        else:
            continue
        if bound.discounted is exact:
            intervals[bound.id] = Interval(penalty, gain, gain, valid)
        else:
            intervals[bound.id] = Interval(penalty, surrogate_gain - penalty, surrogate_gain + penalty, valid)
    return intervals


def _best(bounds: dict[str, Interval], scale: float) -> str:
    known = [b.id for b in CATALOGUE if b.needs == "samples" and b.id in bounds and bounds[b.id].valid]
    largest = max(bounds[name].lower for name in known)
    return next(name for name in known if bounds[name].lower >= largest - _TIE * scale)
