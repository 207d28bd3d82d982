"""Claims 17 to 21: the constrained step, its Lagrangian, and what PPO makes of it."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from surefoot.divergences import kl, total_variation
from surefoot.geometry import movement, surrogate
from surefoot.lecture.cases import BANDIT_POLICY, garnet, random_policy
from surefoot.lecture.statement import Claim, Evidence, excess, number, worst
from surefoot.tabular import TabularPolicy, evaluate, exact_batch, identities, tabular_policy
from surefoot.tabular.penalty import dual_ascent, mode_covering, softened, softened_value

Array = np.ndarray

BANDIT_ADVANTAGE = np.array([1.0, -1.0, -1.0])
"""The advantages of `cases.BANDIT_POLICY` in the worked cases."""

_HORIZON = 1 / (1 - 0.9)


class Rows(NamedTuple):
    """A constrained step in many states: weights d, the old policy, its advantages."""

    weight: Float[Array, " S"]
    old: Float[Array, "S A"]
    advantage: Float[Array, "S A"]


def random_rows(rng: np.random.Generator) -> Rows:
    """Those of a Garnet MDP and a random policy."""
    mdp = garnet(rng)
    account = evaluate(mdp, random_policy(rng, mdp))
    return Rows(account.visitation, account.probabilities, account.advantage)


def largest_useful_radius(rows: Rows) -> float:
    """The KL(new || old) of the greedy policy; any radius from there on is no constraint."""
    return float(rows.weight @ kl(softened(rows.old, rows.advantage, 0.0), rows.old))


def variance(rows: Rows, new: Float[Array, "S A"]) -> float:
    """E_d Var_pi' A: minus lambda^3 times the derivative of the softened policy's KL in lambda."""
    mean = np.sum(new * rows.advantage, axis=1, keepdims=True)
    return float(rows.weight @ np.sum(new * (rows.advantage - mean) ** 2, axis=1))


def lagrangian(rng: np.random.Generator) -> Evidence:
    """Claim 17: the saddle point closes the duality gap, for lambda >= 0 only."""
    errors, scales = [], []
    for _ in range(10):
        rows = random_rows(rng)
        radius = rng.uniform(0.01, 0.3) * largest_useful_radius(rows)
        dual = dual_ascent(rows.old, rows.advantage, radius, weight=rows.weight, iterations=300)
        multiplier = dual.multipliers[-1]
        primal = float(rows.weight @ np.sum(dual.probabilities * rows.advantage, axis=1))
        values = [
            m * radius + float(rows.weight @ softened_value(rows.old, rows.advantage, m))
            for m in (multiplier, 0.5 * multiplier, 2 * multiplier)
        ]
        errors += [abs(primal - values[0]), excess(values[0], min(values[1:])), abs(dual.kls[-1] - radius)]
        # A sum over times in the first term is a sum over d times 1/(1-g).
        summed = dual_ascent(
            rows.old, rows.advantage * _HORIZON, radius, weight=rows.weight, start=_HORIZON, iterations=300
        )
        scales.append(summed.multipliers[-1] / multiplier)
    return Evidence(
        worst(errors),
        (
            "In 10 MDPs the best constrained step's value was the Lagrangian's at its saddle point, and no other tried "
            "$\\lambda \\ge 0$ was below it.",
            f"Without $\\lambda \\ge 0$ duality fails: in the bandit with $\\epsilon = .8$ the best value is 1, and "
            f"$\\max_{{\\pi'}} L(\\pi', -1)$ is {number(negative_dual())}, which is no upper bound.",
            f"With $\\sum_t \\gamma^t$ in the first term and a normalised $d$ in the second the multiplier came out "
            f"{number(np.median(scales))} times as large: by $1/(1-\\gamma)$, here {number(_HORIZON)}.",
        ),
        shown=negative_dual() < 1,
    )


def negative_dual() -> float:
    """max over pi' of E A - lambda (KL - .8) in the worked bandit for lambda = -1: convex, so at a vertex."""
    vertices = np.eye(3)
    return float(np.max(vertices @ BANDIT_ADVANTAGE + (kl(vertices, BANDIT_POLICY) - 0.8)))


def projection(rng: np.random.Generator) -> Evidence:
    """Claim 18: where the constraint does not bind, lambda must stop at 0; and there the step is greedy."""
    errors, below, unbounded = [], 0, []
    cases = 10
    for _ in range(cases):
        rows = random_rows(rng)
        radius = rng.uniform(1.1, 2) * largest_useful_radius(rows)
        dual = dual_ascent(rows.old, rows.advantage, radius, weight=rows.weight, eta=0.5, iterations=400)
        greedy = softened(rows.old, rows.advantage, 0.0)
        errors += [dual.multipliers[-1], np.abs(dual.probabilities - greedy)]
        # The same rule without max(0, .), as far as it goes.
        last = int(np.argmax(dual.multipliers == 0)) or len(dual.multipliers) - 1
        unprojected = dual.multipliers[last - 1] + 0.5 * (dual.kls[last - 1] - radius)
        below += unprojected < 0
        unbounded.append(unprojected)
    tied = dual_ascent(BANDIT_POLICY, np.array([1.0, 1.0, -4.0]), 0.8, eta=0.5, iterations=200)
    errors += [np.abs(tied.probabilities - [0.625, 0.375, 0]), abs(tied.kls[-1] + np.log(0.8))]
    return Evidence(
        worst(errors),
        (
            f"In {below} of {cases} MDPs whose radius was beyond the greedy policy's KL, the lecture's rule took "
            f"$\\lambda$ below 0, on average to {number(np.mean(unbounded), 2)}; there the inner problem maximises KL.",
            "With the projection $\\lambda$ ends at 0 and $\\pi'$ is greedy. At the ties of $A = (1, 1, -4)$ it ends "
            f"at ({', '.join(number(p) for p in tied.probabilities)}) with KL {number(tied.kls[-1], 6)}.",
        ),
        shown=below == cases,
    )


def dual_convergence(rng: np.random.Generator) -> Evidence:
    """Claim 19: both multiplier rules reach KL = eps; a step above 2 lambda^3 / Var does not."""
    errors = []
    for _ in range(5):
        rows = random_rows(rng)
        radius = rng.uniform(0.02, 0.3) * largest_useful_radius(rows)
        free = dual_ascent(rows.old, rows.advantage, radius, weight=rows.weight, iterations=300)
        multiplier = free.multipliers[-1]
        limit = 2 * multiplier**3 / variance(rows, free.probabilities)
        settings = {"weight": rows.weight, "start": 1.02 * multiplier, "iterations": 200}
        stable = dual_ascent(rows.old, rows.advantage, radius, eta=0.5 * limit, **settings)
        errors += [abs(free.kls[-1] / radius - 1), abs(stable.kls[-1] / radius - 1)]
    counts = {radius: _iterations_needed(radius) for radius in (1e-4, 0.1, 0.5)}
    bandit = dual_ascent(BANDIT_POLICY, BANDIT_ADVANTAGE, 0.1)
    multiplier, first = bandit.multipliers[-1], bandit.probabilities[0]
    one = Rows(np.ones(1), BANDIT_POLICY[None], BANDIT_ADVANTAGE[None])
    limit = 2 * multiplier**3 / variance(one, bandit.probabilities[None])
    ends = [
        abs(
            dual_ascent(
                BANDIT_POLICY, BANDIT_ADVANTAGE, 0.1, eta=share * limit, start=1.02 * multiplier, iterations=300
            ).kls[-1]
            / 0.1
            - 1
        )
        for share in (0.9, 1.1)
    ]
    expected = {1e-4: 4, 0.1: 11, 0.5: 42}
    return Evidence(
        worst(errors),
        (
            f"Bandit, $\\epsilon = .1$: $\\lambda^* = {number(multiplier, 7)}$ and $\\pi'(1) = {number(first, 6)}$. "
            "From $\\lambda = 1$ the rule $\\lambda \\leftarrow \\lambda\\sqrt{KL/\\epsilon}$ took "
            f"{', '.join(map(str, counts.values()))} iterations for $\\epsilon = .0001, .1, .5$ to a relative "
            f"{number(1e-10)}.",
            f"With $\\eta$ at .9 of its limit $2\\lambda^3/Var_{{\\pi'}}A = {number(limit)}$ the additive rule ended "
            f"{number(ends[0])} from $\\epsilon$ (relative); at 1.1 of it, {number(ends[1])}: it never settles.",
        ),
        shown=ends[0] < 1e-8 < ends[1]
        and abs(multiplier - 2.119895) < 5e-7
        and abs(first - 0.719795) < 5e-7
        and all(abs(counts[radius] - count) <= 2 for radius, count in expected.items()),
    )


def _iterations_needed(radius: float) -> int:
    """How many updates of lambda the square-root rule takes from 1 to a relative 1e-10 of its fixed point."""
    multipliers = dual_ascent(BANDIT_POLICY, BANDIT_ADVANTAGE, radius, iterations=200).multipliers
    return int(np.argmax(np.abs(multipliers / multipliers[-1] - 1) <= 1e-10))


@jax.jit
def _penalised(new: TabularPolicy, batch, multiplier) -> tuple[jax.Array, jax.Array]:
    """Gradient in the logits of the penalised objective with the ratio, and without it."""

    def divergence(policy):
        return movement(policy, batch).reverse_kl

    def with_ratio(policy):
        return surrogate(policy, batch) - multiplier * divergence(policy)

    def without(policy):
        return jnp.sum(batch.weight * batch.advantage) - multiplier * divergence(policy)

    return jax.grad(with_ratio)(new).logits, jax.grad(without)(new).logits


def omitted_ratio(rng: np.random.Generator) -> Evidence:
    """Claim 20: with the ratio the optimum is the softened policy; without it nothing pulls."""
    errors, lengths = [], []
    for _ in range(4):
        mdp = garnet(rng)
        old = random_policy(rng, mdp)
        account = evaluate(mdp, old)
        multiplier = float(rng.uniform(0.3, 3))
        best = tabular_policy(softened(old, account.advantage, multiplier))
        with jax.enable_x64(True):
            rows = exact_batch(mdp, old)
            at_optimum, _ = _penalised(best, rows, multiplier)
            gradient, nothing = _penalised(tabular_policy(old), rows, multiplier)
        true = identities.return_gradient(mdp, old) / mdp.effective_horizon
        errors += [
            np.abs(at_optimum) / mdp.scale,
            np.abs(nothing) / mdp.scale,
            np.abs(np.asarray(gradient) - true) / mdp.scale,
        ]
        lengths.append(float(np.linalg.norm(gradient)))
    return Evidence(
        worst(errors),
        (
            f"At the old policy the gradient with the ratio had length {', '.join(number(v, 2) for v in lengths)}; "
            "without it, 0 to rounding: the samples' advantages do not depend on $\\theta'$.",
            "With the ratio, the gradient of the penalised objective vanished at the softened policy "
            "$\\pi e^{A/\\lambda}$ in each: that is its optimum.",
        ),
        shown=min(lengths) > 1e-6,
    )


def ppo_objectives(rng: np.random.Generator) -> Evidence:
    """Claim 21: the penalty in the other direction is another optimum; clipping ignores KL."""
    errors, apart = [], []
    for _ in range(40):
        old = rng.dirichlet(np.ones(4))
        advantage = rng.standard_normal(4)
        advantage -= old @ advantage
        multiplier = float(rng.uniform(0.3, 3))
        covering, seeking = mode_covering(old, advantage, multiplier), softened(old, advantage, multiplier)
        apart.append(float(total_variation(covering, seeking)))
        # Stationary on the simplex: the derivative is the same for every action.
        errors.append(np.ptp(advantage + multiplier * old / covering) / max(1, np.ptp(advantage)))
        errors.append(np.ptp(advantage - multiplier * np.log(seeking / old)) / max(1, np.ptp(advantage)))
    near, far = np.array([0.6, 0.24, 0.16]), np.array([1.0, 0.0, 0.0])
    values = [clipped_objective(BANDIT_POLICY, new, BANDIT_ADVANTAGE) for new in (near, far)]
    divergences = [float(kl(BANDIT_POLICY, new)) for new in (near, far)]
    return Evidence(
        worst([*errors, abs(values[0] - values[1])]),
        (
            f"For the same $\\lambda$ the optima under the two directions of KL were {number(np.median(apart), 2)} "
            f"apart in total variation (median of 40), up to {number(max(apart), 2)}.",
            f"In the bandit the clipped objective (at .2) is {number(values[0])} at $\\pi' = (.6, .24, .16)$ and "
            f"{number(values[1])} at $(1, 0, 0)$, with $KL(old\\|new)$ of {number(divergences[0], 2)} and "
            f"{number(divergences[1])}: it has no KL term and does not see the difference.",
        ),
        shown=max(apart) > 1e-3 and divergences[1] > divergences[0],
    )


def clipped_objective(old: Array, new: Array, advantage: Array, clip: float = 0.2) -> float:
    """E_old min(ratio A, clip(ratio, 1 - c, 1 + c) A) over actions (Schulman et al. 2017, equation 7)."""
    ratio = new / old
    return float(np.sum(old * np.minimum(ratio * advantage, np.clip(ratio, 1 - clip, 1 + clip) * advantage)))


CLAIMS = (
    Claim(
        17,
        "The constraint in a Lagrangian",
        r"\mathcal{L}(\theta', \lambda) = \sum_t E_{s_t \sim p_\theta}\left[E_{a_t \sim \pi_{\theta'}} "
        r"[\gamma^t A]\right] - \lambda\left(D_{KL}(\pi_{\theta'} \| \pi_\theta) - \epsilon\right)",
        "Maximise the surrogate subject to a bound on KL, by a Lagrangian.",
        r"\min_{\lambda \ge 0} \max_{\pi'} \; E_d\!\left[E_{\pi'} A - \lambda\left(KL(\pi' \| \pi) - "
        r"\epsilon\right)\right]",
        "The states of both terms are weighted by the same normalised $d$, and $\\lambda$ is not negative.",
        "incomplete",
        "$\\lambda \\ge 0$ and one weighting of states",
        (dual_ascent, softened, softened_value),
        lagrangian,
    ),
    Claim(
        18,
        "The multiplier follows the constraint",
        r"\lambda \leftarrow \lambda + \eta\left(D_{KL}(\pi_{\theta'} \| \pi_\theta) - \epsilon\right)",
        "The multiplier grows while the step is too long, and shrinks while there is room.",
        r"\lambda \leftarrow \max\left(0, \lambda + \eta (KL - \epsilon)\right)",
        "Without the projection a radius that nothing reaches drives $\\lambda$ below 0. The constraint is inactive "
        "exactly when $\\epsilon \\ge E_d[-\\log \\pi(\\mathrm{argmax} A)]$.",
        "incomplete",
        "the projection on $\\lambda \\ge 0$ is missing",
        (dual_ascent, softened),
        projection,
        1e-9,
    ),
    Claim(
        19,
        "Dual gradient descent converges",
        r"\theta' \leftarrow \mathrm{argmax}\, \mathcal{L}(\theta', \lambda), \quad \lambda \leftarrow \ldots \quad "
        r"\Rightarrow \quad \theta' \to \theta^*",
        "Alternating the two steps ends at the constrained optimum.",
        r"\pi' \propto \pi\, e^{A/\lambda}, \qquad \eta < \frac{2\lambda^3}{Var_{\pi'} A} \quad \text{or} \quad "
        r"\lambda \leftarrow \lambda \sqrt{KL/\epsilon}",
        "True for the exact inner maximisation over tables and a stable step; for networks nothing is guaranteed. "
        "The second rule needs no step size.",
        "right",
        "for exact inner steps and a stable $\\eta$",
        (dual_ascent, softened),
        dual_convergence,
        1e-8,
    ),
    Claim(
        20,
        "Maximise the penalised objective",
        r"\theta' \leftarrow \underset{\theta'}{\mathrm{argmax}}\, \; E_{s,a \sim \pi_\theta}[A(s,a)] - "
        r"\lambda D_{KL}(\pi_{\theta'} \| \pi_\theta)",
        "In practice a few gradient steps on samples of the old policy.",
        r"E_{s,a \sim \pi_\theta}\left[\frac{\pi_{\theta'}(a|s)}{\pi_\theta(a|s)} A(s,a)\right] - "
        r"\lambda D_{KL}(\pi_{\theta'} \| \pi_\theta)",
        "With fixed samples and no ratio the first term is a constant, and the whole gradient at $\\theta$ is 0.",
        "incomplete",
        "the ratio is missing",
        (surrogate, movement, identities.return_gradient, softened),
        omitted_ratio,
    ),
    Claim(
        21,
        "This is what PPO does",
        r"\text{PPO} = \text{penalised objective with } D_{KL}(\pi_{\theta'} \| \pi_\theta)",
        "Proximal policy optimisation is said to be this penalised form.",
        r"\text{PPO-penalty: } KL(\pi \| \pi'), \quad \pi' = \frac{\lambda \pi}{\nu - A}; \qquad "
        r"\text{PPO-clip: } E \min\left(\rho A, \mathrm{clip}(\rho) A\right)",
        "The penalty variant uses the other direction, $KL(old\\|new)$, whose optimum is another policy. The clipped "
        "variant, the one that is used, has no KL term.",
        "loose",
        "other direction, or no KL",
        (mode_covering, softened),
        ppo_objectives,
    ),
)
