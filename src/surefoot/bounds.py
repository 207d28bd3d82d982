"""What a change of policy is sure to gain: every lower bound on J(pi') - J(pi), one function each.

All start from the surrogate gain L = <d, Abar>/(1-g) and bound how much the shift of the state law can
take from it: J(pi') - J(pi) = L - <d - d', Abar>/(1-g), so L - penalty <= gain <= L + penalty with
penalty = pen/(1-g). The functions return pen, in reward units; `CATALOGUE` lists them in their order, with
source and needs. The functions named `…_to_horizon` are those of a finite horizon and return
sum_t g^t w_t span(Abar_t), already a penalty of the return.

Notation: Abar(s) = sum_a pi'(a|s) A(s,a); a(s) = TV(pi(.|s), pi'(.|s)); E = g/(1-g); E_d is the mean under
the old policy's discounted visitation d; span(f) = max f - min f. Products take 0 * inf = 0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from jaxtyping import Float

from surefoot.divergences import bretagnolle_huber, pinsker

Array = np.ndarray


@dataclass(frozen=True)
class Discounted:
    """What the bounds of an infinite discounted horizon are computed from.

    Attributes:
        discount: g.
        span: span(Abar) over all states.
        largest: max |Abar(s)|.
        largest_advantage: max |A(s, a)|.
        mean_tv: E_d a.
        max_tv: max_s a(s).
        mean_kl: E_d KL(old || new), nats.
        mean_reverse_kl: E_d KL(new || old), nats.
        max_kl: max_s KL(old || new), nats.
        shift: TV(d, d').
        overlap: the mass of d that both policies are sure to share.
        transfer: <d - d', Abar>, what the shift really takes.
        least_reward: min r.
        largest_reward: max |r|.
    """

    discount: float
    span: float
    largest: float
    largest_advantage: float
    mean_tv: float
    max_tv: float
    mean_kl: float
    mean_reverse_kl: float
    max_kl: float
    shift: float
    overlap: float
    transfer: float
    least_reward: float
    largest_reward: float

    @property
    def odds(self) -> float:
        """E = g/(1-g): how many more steps are expected."""
        return self.discount / (1 - self.discount)


@dataclass(frozen=True)
class ToHorizon:
    """What the bounds of a finite horizon T are computed from; arrays over t = 0, …, T - 1.

    Attributes:
        discount: g.
        span: span(Abar_t).
        tv: TV(p_t, p'_t).
        overlap: 1 - m_t.
        mean_tv: min(1, sum over k < t of E_{p_k} a).
        geometric: 1 - (1 - am)^t.
        chain_kl: min(1, sqrt(1/2 sum over k < t of E_{p_k} KL(old || new))).
        max_tv: am, the largest a(s) over times and states.
        transfer: sum_t g^t <p_t - p'_t, Abar_t>.
        least_reward: min r.
        largest_reward: max |r|.
    """

    discount: float
    span: Float[Array, " T"]
    tv: Float[Array, " T"]
    overlap: Float[Array, " T"]
    mean_tv: Float[Array, " T"]
    geometric: Float[Array, " T"]
    chain_kl: Float[Array, " T"]
    max_tv: float
    transfer: float
    least_reward: float
    largest_reward: float


def times(*factors: float) -> float:
    """The product, 0 wherever a factor is 0, also against inf."""
    return 0.0 if 0 in factors else float(np.prod(factors))


def exact(q: Discounted) -> float:
    """<d - d', Abar>: no bound but the truth (Kakade & Langford 2002, lemma 6.1)."""
    return q.transfer


def tv(q: Discounted) -> float:
    """TV(d, d') span(Abar): a difference of means is at most TV times the span."""
    return times(q.shift, q.span)


def overlap(q: Discounted) -> float:
    """[1 - (1-g) sum mu (I - g sum_a min(pi,pi') P)^-1] span(Abar): what is sure to be shared bounds TV."""
    return times(min(1 - q.overlap, 1), q.span)


def chain_kl(q: Discounted) -> float:
    """min(sqrt(x/2), sqrt(1 - exp(-x))) span(Abar) with x = E E_d KL(old || new).

    d is the law of the state at a geometric time; up to it the two policies' paths have KL x by the chain
    rule, and processing cannot raise it: KL(d || d') <= x. Then Pinsker or Bretagnolle-Huber.
    """
    x = times(q.odds, q.mean_kl)
    return times(min(float(pinsker(x)), float(bretagnolle_huber(x))), q.span)


def mean_tv(q: Discounted) -> float:
    """E E_d[a] span(Abar): the mean disagreement, as often as there are steps."""
    return times(min(times(q.odds, q.mean_tv), 1), q.span)


def geometric(q: Discounted) -> float:
    """g am / (1 - g + g am) span(Abar): agreement of (1 - am)^t after t steps, summed."""
    return times(_geometric_shift(q), q.span)


def max_tv(q: Discounted) -> float:
    """E am span(Abar) (Pirotta et al. 2013, corollary 3.6)."""
    return times(min(times(q.odds, q.max_tv), 1), q.span)


def achiam(q: Discounted) -> float:
    """2 E E_d[a] max|Abar| (Achiam et al. 2017, corollary 1)."""
    return times(2 * q.odds, q.mean_tv, q.largest)


def kakade_langford(q: Discounted) -> float:
    """2 g am / (1 - g + g am) max|Abar| (Kakade & Langford 2002, theorem 4.1, for any new policy)."""
    return times(2 * _geometric_shift(q), q.largest)


def achiam_kl(q: Discounted) -> float:
    """2 E sqrt(E_d KL(new || old) / 2) max|Abar| (Achiam et al. 2017, corollary 3)."""
    return times(2 * q.odds, float(pinsker(q.mean_reverse_kl)), q.largest)


def trpo(q: Discounted) -> float:
    """4 E am^2 max|A| (Schulman et al. 2015, theorem 1)."""
    return times(4 * q.odds, q.max_tv**2, q.largest_advantage)


def trpo_kl(q: Discounted) -> float:
    """4 E max|A| max_s KL(old || new) (Schulman et al. 2015, equation 9)."""
    return times(4 * q.odds, q.largest_advantage, q.max_kl)


def lecture(q: Discounted) -> float:
    """2 E am Rmax / (1-g) (Levine, CS285 lecture 9, with the sum over t discounted). For rewards r >= 0."""
    return times(2 * q.odds, q.max_tv, q.largest_reward) / (1 - q.discount)


def _geometric_shift(q: Discounted) -> float:
    return q.discount * q.max_tv / (1 - q.discount + q.discount * q.max_tv)


def exact_to_horizon(q: ToHorizon) -> float:
    """sum_t g^t <p_t - p'_t, Abar_t>."""
    return q.transfer


def tv_to_horizon(q: ToHorizon) -> float:
    """w_t = TV(p_t, p'_t)."""
    return _weighted_spans(q, q.tv)


def overlap_to_horizon(q: ToHorizon) -> float:
    """w_t = 1 - m_t."""
    return _weighted_spans(q, q.overlap)


def chain_kl_to_horizon(q: ToHorizon) -> float:
    """w_t = sqrt(1/2 sum over k < t of E_{p_k} KL(old || new))."""
    return _weighted_spans(q, q.chain_kl)


def mean_tv_to_horizon(q: ToHorizon) -> float:
    """w_t = sum over k < t of E_{p_k} a."""
    return _weighted_spans(q, q.mean_tv)


def geometric_to_horizon(q: ToHorizon) -> float:
    """w_t = 1 - (1 - am)^t."""
    return _weighted_spans(q, q.geometric)


def lecture_to_horizon(q: ToHorizon) -> float:
    """sum_t g^t 2 am t T Rmax (Levine, CS285 lecture 9). For rewards r >= 0."""
    t = np.arange(len(q.span))
    return times(float(np.sum(q.discount**t * t)), 2 * q.max_tv, len(t) * q.largest_reward)


def _weighted_spans(q: ToHorizon, shift: Float[Array, " T"]) -> float:
    return float(np.sum(q.discount ** np.arange(len(shift)) * shift * q.span))


def _nonnegative_rewards(q: Discounted | ToHorizon) -> bool:
    return q.least_reward >= 0


Needs: TypeAlias = Literal["new visitation", "dynamics", "samples"]


@dataclass(frozen=True)
class Bound:
    """One row of the catalogue.

    Attributes:
        id: its name everywhere.
        needs: what must be known: the new policy's visitation, the transition probabilities, or no more
            than samples can tell (the span and maxima only from below).
        discounted: its pen for an infinite horizon; times 1/(1-g) it is a penalty of the return.
        to_horizon: its penalty for a finite horizon, or None where none is stated.
        valid: whether its conditions hold.
    """

    id: str
    needs: Needs
    discounted: Callable[[Discounted], float]
    to_horizon: Callable[[ToHorizon], float] | None = None
    valid: Callable[[Discounted | ToHorizon], bool] = lambda q: True

    @property
    def source(self) -> str:
        """The formula and where it is from: the first paragraph of the function's docstring."""
        return " ".join((self.discounted.__doc__ or "").split("\n\n")[0].split())


CATALOGUE: tuple[Bound, ...] = (
    Bound("exact", "new visitation", exact, exact_to_horizon),
    Bound("tv", "new visitation", tv, tv_to_horizon),
    Bound("overlap", "dynamics", overlap, overlap_to_horizon),
    Bound("chain-kl", "samples", chain_kl, chain_kl_to_horizon),
    Bound("mean-tv", "samples", mean_tv, mean_tv_to_horizon),
    Bound("geometric", "samples", geometric, geometric_to_horizon),
    Bound("max-tv", "samples", max_tv),
    Bound("achiam", "samples", achiam),
    Bound("kakade-langford", "samples", kakade_langford),
    Bound("achiam-kl", "samples", achiam_kl),
    Bound("trpo", "samples", trpo),
    Bound("trpo-kl", "samples", trpo_kl),
    Bound("lecture", "samples", lecture, lecture_to_horizon, _nonnegative_rewards),
)
"""Every bound, in the order in which ties for the best are broken."""

ORDER: tuple[tuple[str, str], ...] = (
    ("tv", "overlap"),
    ("tv", "chain-kl"),
    ("overlap", "mean-tv"),
    ("overlap", "geometric"),
    ("mean-tv", "max-tv"),
    ("mean-tv", "achiam"),
    ("geometric", "max-tv"),
    ("geometric", "kakade-langford"),
    ("achiam", "achiam-kl"),
    ("trpo", "trpo-kl"),
)
"""Pairs (tighter, looser): the first penalty is never the larger one."""
