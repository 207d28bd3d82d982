"""Claims 13 to 16: from the drift of states to lower bounds on the gain."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import scipy.optimize

from surefoot.bounds import CATALOGUE, ORDER, chain_kl, lecture, lecture_to_horizon, tv
from surefoot.certificate import Certificate, certify
from surefoot.divergences import bretagnolle_huber, kl, pinsker, total_variation
from surefoot.lecture.cases import Case, every_kind, exact_step, garnet, random_cases, random_policy
from surefoot.lecture.statement import Claim, Evidence, excess, number, worst
from surefoot.tabular import MDP, evaluate, library

_PAIRS = 20_000


def difference_of_means(rng: np.random.Generator) -> Evidence:
    """Claim 13: TV max|f| is too little, TV span(f) is enough and never above twice it."""
    p, q = rng.dirichlet(np.ones(3), (2, _PAIRS))
    f = rng.standard_normal((_PAIRS, 3))
    difference = np.abs(np.sum((p - q) * f, axis=1))
    distance, largest, span = total_variation(p, q), np.abs(f).max(axis=1), np.ptp(f, axis=1)
    failures = int(np.sum(difference > distance * largest * (1 + 1e-9)))
    errors = [excess(difference, distance * span), excess(span, 2 * largest)]
    for mdp, old, new in random_cases(rng, 20):
        before, after = evaluate(mdp, old), evaluate(mdp, new)
        values = before.value
        apart = float(total_variation(before.visitation, after.visitation))
        errors.append(excess(abs((after.visitation - before.visitation) @ values), apart * np.ptp(values)) / mdp.scale)
    opposite = np.array([1.0, 0.0]), np.array([0.0, 1.0]), np.array([1.0, -1.0])
    apart = abs(float((opposite[0] - opposite[1]) @ opposite[2]))
    allowed = float(total_variation(*opposite[:2])) * np.abs(opposite[2]).max()
    return Evidence(
        worst(errors),
        (
            f"$p = (1, 0)$, $q = (0, 1)$, $f = (1, -1)$: the means differ by {number(apart)}, the lecture allows "
            f"{number(allowed)}, and $TV \\cdot span(f)$ is "
            f"{number(float(total_variation(*opposite[:2])) * np.ptp(opposite[2]))}.",
            f"Of {_PAIRS:,} random triples of laws and functions on three points {failures:,} broke "
            "$TV \\cdot \\max|f|$; none broke $TV \\cdot span(f)$.".replace(",", "\u202f"),
        ),
        shown=failures > 0 and apart > allowed,
    )


class Measured(NamedTuple):
    """What one bound did over many updates.

    Attributes:
        ratio: median of its penalty over the surrogate's true error |L - gain|.
        proven: share of the updates that it proves to improve.
    """

    ratio: float
    proven: float


def measured_bounds(rng: np.random.Generator, discount: float, count: int = 60) -> dict[str, Measured]:
    """Every bound on `count` natural steps of KL 1e-4 in Garnet MDPs, by id; all from the same certificates."""
    certificates = []
    for _ in range(count):
        mdp = garnet(rng, discount)
        old = random_policy(rng, mdp)
        certificates.append(certify(old, exact_step(mdp, old, "npg", radius=1e-4)[0], mdp))
    return {bound.id: _measured(bound.id, certificates) for bound in CATALOGUE if bound.id != "exact"}


def _measured(name: str, certificates: list[Certificate]) -> Measured:
    ratios = [c.bounds[name].penalty / abs(c.surrogate_gain - c.gain) for c in certificates]
    return Measured(float(np.median(ratios)), float(np.mean([c.bounds[name].lower > 0 for c in certificates])))


def lecture_penalty(rng: np.random.Generator) -> Evidence:
    """Claim 14: kept for rewards in [0, Rmax]; broken for signed ones; beaten by orders of magnitude."""
    errors = []
    for mdp, old, new in every_kind(rng, 10):
        certificate = certify(old, new, _nonnegative(mdp))
        said = certificate.bounds["lecture"]
        errors += [excess(said.lower, certificate.gain), excess(certificate.gain, said.upper)]
        errors = [*errors[:-2], *(error / mdp.scale for error in errors[-2:]), 0.0 if said.valid else np.inf]
    mdp, old, new = opposite_rewards()
    signed = certify(old, new, mdp)
    missed = abs(signed.gain - signed.surrogate_gain)
    lifted = certify(old, new, _nonnegative(mdp))
    by_discount = {discount: measured_bounds(rng, discount, 20) for discount in (0.9, 0.99)}
    times = [number(m["lecture"].ratio / m["chain-kl"].ratio, 2) for m in by_discount.values()]
    undiscounted = [2 * 0.01 / (1 - 0.9) * n * (n - 1) / 2 for n in (10, 100, 1000)]
    return Evidence(
        worst(errors),
        (
            "With rewards $\\pm 1$ and $\\gamma = .1$ (`opposite_rewards`) the surrogate is wrong by "
            f"{number(missed)} where the formula allows {number(signed.bounds['lecture'].penalty)}. With the same "
            f"rewards lifted to $[0, 2]$ it allows {number(lifted.bounds['lecture'].penalty)} and holds.",
            f"After natural steps of KL {number(1e-4)} it is {times[0]} ($\\gamma = .9$) and {times[1]} ($\\gamma = "
            ".99$) times the penalty of `chain_kl` (medians of 20).",
            "Without $\\gamma^t$ the sum grows without end: for $\\epsilon = .01$ and $C = 10$ it is "
            f"{', '.join(number(value) for value in undiscounted)} after 10, 100 and 1000 steps.",
        ),
        shown=missed > signed.bounds["lecture"].penalty
        and not signed.bounds["lecture"].valid
        and all(m["lecture"].ratio > 100 * m["chain-kl"].ratio for m in by_discount.values()),
    )


def _nonnegative(mdp: MDP) -> MDP:
    """The same model with rewards lifted to a least one of 0 (FrozenLake's are so already)."""
    lifted = mdp.reward - min(mdp.reward.min(), 0)
    return MDP(_transition(mdp), lifted, mdp.discount, mdp.start, mdp.horizon)


def _transition(mdp: MDP) -> object:
    dense = isinstance(mdp.matrix, np.ndarray)
    return mdp.matrix.reshape(mdp.states, mdp.actions, mdp.states) if dense else mdp.matrix


def opposite_rewards() -> Case:
    """Where the lecture's penalty fails: the new policy goes to the other of two states, and in each earns
    the opposite of what the old one would."""
    mdp = library.deterministic([[1, 2], [3, 3], [3, 3], [3, 3]], [[0, 0], [-1, 1], [1, -1], [0, 0]], 0.1, 0)
    return Case(mdp, np.eye(2)[[0, 0, 0, 0]], np.eye(2)[[1, 1, 1, 1]])


def pinsker_inequality(rng: np.random.Generator) -> Evidence:
    """Claim 15: for half the L1 distance, not the whole; and Bretagnolle-Huber, better from KL = 1.593624 on."""
    p, q = rng.dirichlet(np.ones(3), (2, _PAIRS))
    distance, divergence = total_variation(p, q), kl(p, q)
    errors = [excess(distance, pinsker(divergence)), excess(distance, bretagnolle_huber(divergence))]
    failures = int(np.sum(2 * distance > pinsker(divergence)))
    cross = scipy.optimize.brentq(lambda x: float(pinsker(x) - bretagnolle_huber(x)), 1.0, 2.0, xtol=1e-14)
    certain, fair = np.array([1.0, 0.0]), np.array([0.5, 0.5])
    known = float(kl(certain, fair))
    return Evidence(
        worst(errors),
        (
            f"Read as the whole $L_1$ distance it failed for {failures:,} of {_PAIRS:,} random pairs; as half of it "
            "for none.".replace(",", "\u202f"),
            f"Pinsker's inequality and that of Bretagnolle and Huber cross at $KL = {number(cross, 7)}$.",
            f"From $(.5, .5)$ to $(1, 0)$: $TV = {number(total_variation(fair, certain))}$, "
            f"$KL(\\pi'\\|\\pi) = {number(known, 6)}$, Pinsker {number(pinsker(known), 6)}, Bretagnolle-Huber "
            f"{number(bretagnolle_huber(known), 6)}; $KL(\\pi\\|\\pi')$ is {number(kl(fair, certain))}.",
        ),
        shown=failures > 0 and abs(cross - 1.593624) < 5e-7,
    )


def direction_of_kl(rng: np.random.Generator) -> Evidence:
    """Claim 16: KL(d || d') <= E E_d KL(old || new); false, by found cases, with KL(new || old) under E_d."""
    errors = []
    for case in [*random_cases(rng, 40), *random_cases(rng, 40, discount=0.99)]:
        q = _divergences(case)
        errors += [excess(q.forward_shift, q.forward), excess(q.reverse_shift, q.reverse)]
    count, found = 300, []
    for _ in range(count):
        q = _divergences(_changed_start(rng))
        errors += [excess(q.forward_shift, q.forward), excess(q.reverse_shift, q.reverse)]
        if max(q.forward_shift, q.reverse_shift) > q.mixed + 1e-9:
            found.append(q)
    distances = sum(q.distance > float(pinsker(q.mixed)) + 1e-9 for q in found)
    largest = max(found, key=lambda q: q.forward_shift - q.mixed, default=None)
    example = (
        ""
        if largest is None
        else f", at worst $KL(d\\|d') = {number(largest.forward_shift)}$ against {number(largest.mixed)}"
    )
    return Evidence(
        worst(errors),
        (
            f"Of {count} random MDPs of three states whose policies differ at the start, {len(found)} broke the mixed "
            f"form $E \\cdot E_d KL(\\pi'\\|\\pi)${example}. In {distances} of them even $TV(d, d')$ was above what "
            "Pinsker's inequality would make of it.",
        ),
        shown=bool(found),
    )


class Drift(NamedTuple):
    """How far the visitation moved, and what is said to bound that; the bounds include E = g/(1-g).

    Attributes:
        forward_shift, reverse_shift: KL(d || d') and KL(d' || d).
        distance: TV(d, d').
        forward: E E_d KL(old || new).
        reverse: E E_d' KL(new || old), the same with the policies' parts exchanged.
        mixed: E E_d KL(new || old), the states of the one and the direction of the other.
    """

    forward_shift: float
    reverse_shift: float
    distance: float
    forward: float
    reverse: float
    mixed: float


def _divergences(case: Case) -> Drift:
    mdp, old, new = case
    d, after = evaluate(mdp, old).visitation, evaluate(mdp, new).visitation
    odds = mdp.discount * mdp.effective_horizon
    bounds = [odds * float(law @ kl(p, q)) for law, p, q in ((d, old, new), (after, new, old), (d, new, old))]
    return Drift(float(kl(d, after)), float(kl(after, d)), float(total_variation(d, after)), *bounds)


def _changed_start(rng: np.random.Generator) -> Case:
    """Three states and two actions, the second seldom taken, and at the start a new probability of it."""
    mdp = library.deterministic(rng.integers(3, size=(3, 2)), np.zeros((3, 2)), 0.9, 0)
    old = 10 ** rng.uniform(-5, 0, 3)
    new = np.array([10 ** rng.uniform(-5, 0), *old[1:]])
    return Case(mdp, np.stack([1 - old, old], axis=1), np.stack([1 - new, new], axis=1))


def order_violation(rng: np.random.Generator, count: int = 30) -> float:
    """By how much the stated order of the bounds is missed at worst over `count` random changes of policy."""
    errors = []
    for mdp, old, new in random_cases(rng, count):
        bounds = certify(old, new, mdp).bounds
        errors += [excess(bounds[tight].penalty, bounds[loose].penalty) / mdp.scale for tight, loose in ORDER]
    return worst(errors)


CLAIMS = (
    Claim(
        13,
        "The same function under two laws",
        r"\left|E_{p'}[f] - E_p[f]\right| \le TV(p, p') \cdot \max_s |f(s)|",
        "If the state law has moved by TV, an expectation over it has moved by at most that times the largest value.",
        r"\left|E_{p'}[f] - E_p[f]\right| \le TV(p, p') \cdot \left(\max f - \min f\right) \le 2\, TV \max|f|",
        "What is lost in one place is gained in another, so it is the span that counts; for half the $L_1$ distance "
        "the largest value is too little.",
        "wrong",
        "for half the $L_1$ distance",
        (total_variation, tv),
        difference_of_means,
    ),
    Claim(
        14,
        "The lecture's lower bound",
        r"J(\theta') - J(\theta) \ge \bar A(\theta') - \sum_t 2\epsilon t\, C, \qquad "
        r"C = O(T r_{max}) \text{ or } O\!\left(\frac{r_{max}}{1-\gamma}\right)",
        "So raising the surrogate raises the return, as long as $\\epsilon$ is small.",
        r"\left|J(\pi') - J(\pi) - L(\pi')\right| \le \frac{2\epsilon\gamma R_{max}}{(1-\gamma)^3} "
        r"\quad \text{for } 0 \le r \le R_{max}",
        "With $\\gamma^t$ in the sum, which otherwise diverges, and with rewards of one sign. It is true and of no "
        "use: the bounds below beat it by orders of magnitude.",
        "right",
        "for $0 \\le r \\le R_{max}$ and with $\\gamma^t$",
        (lecture, lecture_to_horizon, certify),
        lecture_penalty,
    ),
    Claim(
        15,
        "Pinsker's inequality",
        r"\left|\pi_{\theta'}(a|s) - \pi_\theta(a|s)\right| \le \sqrt{\tfrac{1}{2} D_{KL}(\pi_{\theta'} \| "
        r"\pi_\theta)}",
        "A bound on KL is then a bound on the distance, and KL is the one that can be estimated and differentiated.",
        r"TV \le \sqrt{\tfrac{1}{2} KL}, \qquad TV \le \sqrt{1 - e^{-KL}}",
        "Right for half the $L_1$ distance. The second form (Bretagnolle and Huber) is the better one for large KL and "
        "never exceeds 1.",
        "right",
        "for half the $L_1$ distance",
        (pinsker, bretagnolle_huber, kl, total_variation),
        pinsker_inequality,
    ),
    Claim(
        16,
        "KL bounds the drift of states",
        r"D_{KL}(\pi_{\theta'} \| \pi_\theta) \le \epsilon \;\Rightarrow\; p_{\theta'}(s_t) \approx p_\theta(s_t)",
        "A small KL from the new policy to the old one keeps the state law close.",
        r"KL(d \| d') \le \frac{\gamma}{1-\gamma}\, E_d\!\left[KL(\pi \| \pi')\right]",
        "The law and the direction belong together: under the old policy's states it is $KL(old\\|new)$. "
        "With $KL(new\\|old)$ under $E_d$ it is false.",
        "loose",
        "on the direction of KL",
        (kl, chain_kl),
        direction_of_kl,
    ),
)
