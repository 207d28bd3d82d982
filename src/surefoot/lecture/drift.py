"""Claims 7 to 12: how far the law of states drifts when the policy changes."""

from __future__ import annotations

import numpy as np

from surefoot.divergences import total_variation
from surefoot.lecture.cases import Case, deterministic_case, every_kind, garnet, random_policy
from surefoot.lecture.statement import Claim, Evidence, excess, number, worst
from surefoot.tabular import (
    evaluate,
    library,
    maximal_coupling,
    mistake_law,
    sample_coupled,
    state_laws,
    state_shift,
)
from surefoot.tabular.evaluation import propagate, through_time
from surefoot.tabular.penalty import softened

_STEPS = 20


def deterministic_mixture(rng: np.random.Generator) -> Evidence:
    """Claim 7: the remainder of p'_t after its share (1-e)^t of p_t is a law of states."""
    errors, understated = [], 0
    for _ in range(40):
        (mdp, old, new), mistake = deterministic_case(rng)
        remainder = mistake_law(mdp, old, new, mistake, _STEPS)
        kept = ((1 - mistake) ** np.arange(_STEPS + 1))[:, None]
        put_together = kept * state_laws(mdp, old, _STEPS) + (1 - kept) * remainder
        errors += [-remainder, np.abs(remainder.sum(axis=1) - 1)]
        errors.append(np.abs(put_together - state_laws(mdp, new, _STEPS)))
        understated += bool(mistake_law(mdp, old, new, mistake / 2, _STEPS).min() < -1e-9)
    return Evidence(
        worst(errors),
        (
            "In 40 Garnet MDPs with a deterministic $\\pi$, $p_{mistake}$ was a law at every $t \\le 20$. With "
            f"half of the mistakes' probability put in for $\\epsilon$ it had negative entries in {understated} of 40.",
        ),
        shown=understated > 0,
    )


def mixture_shift(rng: np.random.Generator) -> Evidence:
    """Claim 8: TV(p_t, p'_t) <= 1 - (1-e)^t <= e t, for the deterministic policies of the lecture and for any."""
    errors, shares = [], []
    for _ in range(40):
        case, _ = deterministic_case(rng)
        shift = state_shift(*case, _STEPS)
        errors += [excess(shift.tv, shift.geometric), excess(shift.geometric, shift.linear)]
        shares.append(shift.tv[_STEPS] / shift.geometric[_STEPS])
    return Evidence(
        worst(errors),
        (
            f"At $t = 20$ the shift was {number(np.median(shares), 2)} of $1 - (1-\\epsilon)^t$ (median of 40), at "
            f"most {number(max(shares), 2)}: states mix, and what was a mistake is forgotten.",
        ),
    )


def coupling_lemma(rng: np.random.Generator) -> Evidence:
    """Claim 9: a joint law with the right marginals whose diagonal is 1 - TV, and no other has more."""
    errors = []
    for _ in range(200):
        p, q = rng.dirichlet(np.full(5, 0.7), 2)
        joint = maximal_coupling(p, q)
        agree = 1 - float(total_variation(p, q))
        errors += [np.abs(joint.sum(axis=1) - p), np.abs(joint.sum(axis=0) - q), -joint, abs(np.trace(joint) - agree)]
        # Any coupling agrees in k with at most min(p_k, q_k); these are random mixtures of two couplings.
        share = rng.random()
        errors.append(excess(np.trace(share * joint + (1 - share) * np.outer(p, q)), agree))
    p, q = rng.dirichlet(np.ones(5), 2)
    agreed, expected = _frequency_of_agreement(rng, p, q)
    return Evidence(
        worst(errors),
        (
            f"100 000 pairs drawn from one such joint law agreed {number(agreed, 4)} of the time; "
            f"$1 - TV = {number(expected, 4)}$. With the whole $L_1$ distance in place of its half the lemma would "
            f"promise {number(1 - 2 * (1 - expected), 4)}.",
        ),
        shown=abs(agreed - expected) < 0.01,
    )


def _frequency_of_agreement(rng: np.random.Generator, p: np.ndarray, q: np.ndarray) -> tuple[float, float]:
    x, y = sample_coupled(p, q, 100_000, rng)
    return float(np.mean(x == y)), 1 - float(total_variation(p, q))


def agreement(rng: np.random.Generator) -> Evidence:
    """Claim 10: policies at distance at most e agree with probability at least 1 - e, not e."""
    missed, distances = [], []
    for _ in range(50):
        mistake = rng.uniform(0.02, 0.4)
        p = rng.dirichlet(np.ones(3))
        q = (1 - mistake) * p + mistake * rng.dirichlet(np.ones(3))
        diagonal = float(np.trace(maximal_coupling(p, q)))
        missed.append(excess(1 - mistake, diagonal))
        distances.append(diagonal - mistake)
    p = np.array([0.7, 0.2, 0.1])
    q = np.array([0.6, 0.2, 0.2])
    agreed, expected = _frequency_of_agreement(rng, p, q)
    return Evidence(
        worst([*missed, abs(expected - 0.9)]),
        (
            "$\\pi = (.7, .2, .1)$ and $\\pi' = (.6, .2, .2)$ are $\\epsilon = .1$ apart and agreed in "
            f"{number(agreed, 4)} of 100 000 draws: $1 - \\epsilon$.",
            "In 50 random pairs the probability of agreement was never below $1 - \\epsilon$, and above $\\epsilon$ "
            f"by at least {number(min(distances), 2)}.",
        ),
        shown=abs(agreed - 0.9) < 0.01 and min(distances) > 0,
    )


def stochastic_mixture(rng: np.random.Generator) -> Evidence:
    """Claim 11: for stochastic policies p_mistake may be negative; the overlap of the two laws is what is kept."""
    errors, least = [], []
    cases = 60
    for _ in range(cases):
        mdp = garnet(rng)
        old = random_policy(rng, mdp)
        # Steps of the natural gradient, from soft to nearly greedy.
        new = softened(old, evaluate(mdp, old).advantage, 10 ** rng.uniform(-1, 1))
        mistake = float(total_variation(old, new).max())
        least.append(mistake_law(mdp, old, new, mistake, _STEPS).min())
        errors.append(overlap_error(Case(mdp, old, new)))
    errors += [overlap_error(case) for case in every_kind(rng, 3)]
    negative = sum(value < -1e-9 for value in least)
    return Evidence(
        worst(errors),
        (
            f"With $\\epsilon = \\max_s TV(\\pi, \\pi')$, $p_{{mistake}}$ had negative entries in {negative} of "
            f"{cases} Garnet MDPs, down to {number(min(least), 2)}: it is no law, and the identity does not exist.",
            "The overlap $u_t$ never exceeded either law, its mass never fell below $(1-\\epsilon)^t$, and "
            "$TV \\le 1 - m_t$ held everywhere.",
        ),
        shown=negative > 0,
    )


def overlap_error(case: Case) -> float:
    """By how much u_t <= min(p_t, p'_t), m_t >= (1-e)^t or TV <= 1 - m_t <= sum E_{p_k} a is missed."""
    mdp, old, new = case
    steps = _STEPS if mdp.horizon is None else mdp.horizon
    before, after = mdp.probabilities(old), mdp.probabilities(new)
    shared = propagate(mdp, np.minimum(through_time(mdp, before, steps), through_time(mdp, after, steps)))
    laws = np.minimum(state_laws(mdp, old, steps), state_laws(mdp, new, steps))
    shift = state_shift(mdp, old, new, steps)
    mass = shared.sum(axis=1)
    return worst(
        [
            excess(shared, laws),
            excess(1 - shift.geometric, mass),
            excess(shift.tv, 1 - mass),
            excess(1 - mass, shift.mean_tv),
        ]
    )


def linear_shift(rng: np.random.Generator) -> Evidence:
    """Claim 12: in half the L1 distance e t is enough, and at t = 1 it is attained."""
    errors, shares = [], []
    for case in every_kind(rng, 15):
        shift = state_shift(*case)
        errors.append(excess(shift.tv, shift.linear))
        shares.append(np.max(shift.tv[1:] / np.maximum(2 * shift.linear[1:], 1e-300)))
    x = rng.uniform(0.05, 0.5)
    attained = state_shift(library.equality(), np.array([[1, 0]] * 2), np.array([[1 - x, x]] * 2), 3)
    errors.append(abs(attained.tv[1] - x))
    return Evidence(
        worst(errors),
        (
            f"Over {len(shares)} cases the shift was at most {number(max(shares), 2)} of $2\\epsilon t$.",
            f"In `library.equality` with $\\epsilon = {number(x)}$ it is {number(attained.tv[1])} after one step: "
            "exactly $\\epsilon t$, half of what the lecture allows.",
        ),
        shown=max(shares) <= 0.5 + 1e-9,
    )


CLAIMS = (
    Claim(
        7,
        "Mistakes mix the state law: deterministic policies",
        r"p_{\theta'}(s_t) = (1-\epsilon)^t p_\theta(s_t) + \left(1 - (1-\epsilon)^t\right) p_{mistake}(s_t)",
        "If the new policy departs from a deterministic one with probability $\\epsilon$, it has made no mistake "
        "before time $t$ with probability $(1-\\epsilon)^t$, and the rest is some other law.",
        r"p_{mistake}(s_t) = \frac{p'_t - (1-\epsilon)^t p_t}{1 - (1-\epsilon)^t} \ge 0, \qquad "
        r"\sum_s p_{mistake}(s) = 1",
        "True as an identity, for a probability of mistakes of $\\epsilon$ or less in every state.",
        "right",
        "for a deterministic $\\pi$",
        (mistake_law, state_laws),
        deterministic_mixture,
    ),
    Claim(
        8,
        "So the state law moves slowly",
        r"\left|p_{\theta'}(s_t) - p_\theta(s_t)\right| \le 2\left(1 - (1-\epsilon)^t\right) \le 2\epsilon t",
        "The whole $L_1$ distance is at most twice the share of the mixture that is not the old law.",
        r"TV(p_t, p'_t) \le 1 - (1-\epsilon)^t \le \epsilon t",
        "In half the $L_1$ distance, which lies in $[0, 1]$, the factor 2 is gone.",
        "right",
        "",
        (state_shift,),
        mixture_shift,
    ),
    Claim(
        9,
        "The coupling lemma",
        r"\left|p_X - p_Y\right| = \epsilon \;\Rightarrow\; \exists\, p(x,y): \; p(x) = p_X, \; p(y) = p_Y, \; "
        r"p(x = y) = 1 - \epsilon",
        "Two laws at distance $\\epsilon$ can be drawn together so that they agree with probability $1 - \\epsilon$.",
        r"\mathrm{diag}(\min(p,q)) + \frac{(p-q)_+ (q-p)_+^{T}}{TV(p,q)}",
        "This joint law agrees with probability $1 - TV$, the most that is possible. The distance must be half the "
        "$L_1$ distance.",
        "right",
        "for half the $L_1$ distance",
        (maximal_coupling, sample_coupled),
        coupling_lemma,
    ),
    Claim(
        10,
        "Close policies agree",
        r"\left|\pi_{\theta'}(a|s) - \pi_\theta(a|s)\right| \le \epsilon \;\Rightarrow\; P(a = a') = \epsilon",
        "Applied to two policies, the lemma is said to make them agree with probability $\\epsilon$.",
        r"P(a = a') \ge 1 - \epsilon",
        "They agree with probability at least $1 - \\epsilon$, and disagree with probability at most $\\epsilon$.",
        "wrong",
        "they agree with probability $1 - \\epsilon$",
        (maximal_coupling, sample_coupled),
        agreement,
    ),
    Claim(
        11,
        "The same mixture for stochastic policies",
        r"p_{\theta'}(s_t) = (1-\epsilon)^t p_\theta(s_t) + \left(1 - (1-\epsilon)^t\right) p_{mistake}(s_t)",
        "By the coupling lemma the mixture of claim 7 is said to carry over to any two policies.",
        r"u_0 = \mu, \quad u_{t+1} = \sum_a \left(u_t \min(\pi,\pi')\right) P \le \min(p_{t+1}, p'_{t+1}), \quad "
        r"m_t = \sum_s u_t \ge (1-\epsilon)^t",
        "As an identity it is false. What the two laws are sure to share is $u_t$, so $TV(p_t, p'_t) \\le 1 - m_t "
        "\\le \\sum_{k<t} E_{p_k} TV(\\pi, \\pi')$, and every bound of the lecture survives.",
        "wrong",
        "as an identity; its bound is right",
        (mistake_law, propagate, state_shift),
        stochastic_mixture,
    ),
    Claim(
        12,
        "The bound for stochastic policies",
        r"TV(p_t, p'_t) \le 2\epsilon t",
        "The state law is at most $2\\epsilon t$ away.",
        r"TV(p_t, p'_t) \le \epsilon t",
        "True, and twice as large as it must be when distance means half the $L_1$ distance, as it does for the "
        "policies here.",
        "loose",
        "true, but twice too large",
        (state_shift,),
        linear_shift,
    ),
)
