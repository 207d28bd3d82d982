"""Claims 22 to 27: inside the trust region, from the gradient's step to the natural gradient's."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from surefoot.divergences import kl
from surefoot.geometry import (
    fisher_operator,
    fisher_quadratic,
    movement,
    surrogate_gradient,
)
from surefoot.lecture.cases import (
    BANDIT_POLICY,
    Local,
    decisions,
    exact_step,
    garnet,
    local_geometry,
    random_cases,
    random_policy,
    worked_bandit,
)
from surefoot.lecture.statement import Claim, Evidence, excess, number, worst
from surefoot.rules import NPG, PG
from surefoot.steps import conjugate_gradients, step_to_ball, step_to_radius
from surefoot.tabular import TabularPolicy, evaluate

Array = np.ndarray

moved = eqx.filter_jit(movement)
"""`geometry.movement`, compiled once for all figures and claims."""


@jax.jit
def solve(fisher: Any, gradient: Any, damping: Any, iterations: Any, tolerance: Any) -> Any:
    """`steps.conjugate_gradients` on a Fisher matrix, to the given number of iterations or the tolerance."""
    return conjugate_gradients(
        lambda v: fisher @ v, gradient, damping=damping, iterations=iterations, tolerance=tolerance
    )


def at(local: Local, step: Float[Array, " P"]) -> TabularPolicy:
    """The policy at the local one's logits plus a step."""
    return TabularPolicy(local.policy.logits + np.asarray(step).reshape(local.policy.logits.shape))


def bandit_geometry() -> Local:
    """That of worked cases 2 and 5, in the first three of its parameters; call it with 64 bits enabled."""
    mdp, old, _ = worked_bandit()
    return local_geometry(mdp, old)


def linear_model(rng: np.random.Generator) -> Evidence:
    """Claim 22: surrogate and return have the slope g; beyond first order the model overpromises."""
    errors, promises = [], []
    length = 1e-4
    for mdp, old, _ in random_cases(rng, 5):
        with jax.enable_x64(True):
            local = local_geometry(mdp, old)
            direction = local.natural / np.sqrt(local.natural @ local.fisher @ local.natural)
            slope = float(local.gradient @ direction)
            ahead, behind = (moved(at(local, sign * length * direction), local.batch) for sign in (1, -1))
        of_surrogate = float(ahead.surrogate_gain - behind.surrogate_gain) / (2 * length)
        returns = [
            evaluate(mdp, at(local, sign * length * direction)).expected_return / mdp.effective_horizon
            for sign in (1, -1)
        ]
        errors += [abs(of_surrogate / slope - 1), abs((returns[0] - returns[1]) / (2 * length) / slope - 1)]
        row = []
        for radius in (1e-4, 1e-2, 1e-1):
            step = np.sqrt(2 * radius) * direction
            gain = evaluate(mdp, at(local, step)).expected_return - evaluate(mdp, old).expected_return
            row.append(float(local.gradient @ step) * mdp.effective_horizon / gain)
        promises.append(row)
    typical = np.median(promises, axis=0)
    return Evidence(
        worst(errors),
        (
            f"At KL .0001, .01 and .1 along the natural gradient the linear model promised "
            f"{', '.join(number(value) for value in typical)} times the true gain (medians of 5 MDPs).",
        ),
        shown=abs(typical[0] - 1) < 0.1,
    )


def best_step_in_a_ball(rng: np.random.Generator) -> Evidence:
    """Claim 23: the step lies on the ball's edge, along g, with multiplier |g| / (2 sqrt(eps)); none gains more."""
    errors, best_other = [], []
    with jax.enable_x64(True):
        for mdp, old, _ in random_cases(rng, 6):
            gradient, radius = local_geometry(mdp, old).gradient, float(10 ** rng.uniform(-4, 0))
            step = float(step_to_ball(jnp.asarray(gradient), radius)) * gradient
            multiplier = np.linalg.norm(gradient) / (2 * np.sqrt(radius))
            errors += [abs(step @ step / radius - 1), np.abs(gradient - 2 * multiplier * step)]
            others = rng.standard_normal((2000, step.size)) + 3 * rng.random((2000, 1)) * gradient / np.linalg.norm(
                gradient
            )
            others *= np.sqrt(radius) / np.linalg.norm(others, axis=1, keepdims=True)
            best_other.append(np.max(others @ gradient) / (gradient @ step))
            errors.append(excess(best_other[-1], 1))
    return Evidence(
        worst(errors),
        (
            f"Of 12 000 other steps to the edges of 6 balls none gained more to first order; the best reached "
            f"{number(max(best_other))} of it.",
        ),
    )


def euclidean_step(rng: np.random.Generator) -> Evidence:
    """Claim 24: the rule pg takes this step; what KL it is differs from policy to policy."""
    errors, divergences = [], []
    radius = 0.1
    for mdp, old, _ in random_cases(rng, 12):
        new, report = exact_step(mdp, old, "pg", radius=radius)
        with jax.enable_x64(True):
            local = local_geometry(mdp, old)
        step = np.sqrt(radius / (local.gradient @ local.gradient)) * local.gradient
        errors += [np.abs(new - at(local, step).probabilities()), abs(float(report.step_length) ** 2 / radius - 1)]
        divergences.append(float(report.kl))
    return Evidence(
        worst(errors),
        (
            f"Twelve steps of the same length, $\\epsilon = .1$, were between {number(min(divergences), 2)} and "
            f"{number(max(divergences), 2)} nats long: the ball does not know what the parameters do.",
        ),
    )


def quadratic_model(rng: np.random.Generator) -> Evidence:
    """Claim 25: both directions of KL have the Hessian F; the rest is of third order."""
    errors, cubic = [], []
    for mdp, old, _ in random_cases(rng, 6):
        with jax.enable_x64(True):
            local = local_geometry(mdp, old)
            direction = rng.standard_normal(local.gradient.size)
            half = 0.5 * float(fisher_quadratic(local.policy, local.batch, jnp.asarray(direction)))
            errors.append(abs(0.5 * direction @ local.fisher @ direction / half - 1))
            length = 1e-3
            ahead, behind = (moved(at(local, sign * length * direction), local.batch) for sign in (1, -1))
            further = moved(at(local, 10 * length * direction), local.batch)
        for name in ("kl", "reverse_kl"):
            even = float(getattr(ahead, name) + getattr(behind, name)) / (2 * length**2)
            errors.append(abs(even / half - 1))
        rest = [abs(float(m.kl) - half * h**2) for m, h in ((ahead, length), (further, 10 * length))]
        cubic.append(rest[1] / rest[0])
    return Evidence(
        worst(errors),
        (
            f"A step ten times as long missed the quadratic model by {number(np.median(cubic))} times as much (median "
            "of 6): a cubic remainder. The mean of a step and its opposite has none, which is what the residual "
            "compares.",
        ),
    )


def step_to_the_radius(rng: np.random.Generator) -> Evidence:
    """Claim 26: alpha from g^T F^-1 g has the radius as its KL; from g^T F g many times that."""
    errors, right, wrong = [], [], []
    radius = 1e-4
    for mdp, old, _ in random_cases(rng, 12):
        _, report = exact_step(mdp, old, "npg", radius=radius)
        errors.append(abs(float(report.predicted_kl) / radius - 1))
        right.append(float(report.kl) / radius)
        with jax.enable_x64(True):
            local = local_geometry(mdp, old)
            wrong.append(_kl_of_literal_step(local, radius) / radius)
    with jax.enable_x64(True):
        bandit = bandit_geometry()
        natural = bandit.natural
        quadratics = [
            float(natural @ bandit.fisher @ natural),
            float(bandit.gradient @ bandit.fisher @ bandit.gradient),
        ]
        alphas = [float(step_to_radius(jnp.asarray(quadratic), 0.01)) for quadratic in quadratics]
        stepped = [softmax_step(alpha * natural[:3]) for alpha in alphas]
    reached = [float(kl(new, BANDIT_POLICY)) for new in stepped]
    errors += [abs(quadratics[0] - 1), abs(bandit.gradient @ natural - 1), abs(quadratics[1] - 0.1456)]
    by_hand = np.abs(stepped[0] - [0.570243, 0.257854, 0.171903]).max()
    return Evidence(
        worst(errors),
        (
            f"For a radius of {number(radius)} the corrected step's KL was {number(min(right))} to "
            f"{number(max(right))} of it in 12 MDPs, the lecture's {number(min(wrong))} to {number(max(wrong))} times "
            "it.",
            f"Bandit, $\\epsilon = .01$: $g^T F g = {number(quadratics[1], 4)}$ and $g^T F^{{-1}} g = "
            f"{number(quadratics[0])}$. The lecture's $\\alpha$ is {number(alphas[1], 6)} and its KL "
            f"{number(reached[1], 5)}; the right one is {number(alphas[0], 6)}, its KL {number(reached[0], 4)}.",
        ),
        shown=min(wrong) > 4 * (1 - 0.05) and max(right) < 2 and abs(reached[1] - 0.064236) < 5e-7 and by_hand < 1e-6,
    )


def _kl_of_literal_step(local: Local, radius: float) -> float:
    """KL(old || new) of sqrt(2 eps / g^T F g) F^-1 g, measured."""
    literal = float(step_to_radius(jnp.asarray(local.gradient @ local.fisher @ local.gradient), radius))
    return float(moved(at(local, literal * local.natural), local.batch).kl)


def conjugate_gradient_solution(rng: np.random.Generator) -> Evidence:
    """Claim 27: exact and of least norm for g in the range of F; without end for g outside and no damping."""
    errors, grown, left = [], [], []
    with jax.enable_x64(True):
        bandit = bandit_geometry()
        eigenvalues = np.linalg.eigvalsh(bandit.fisher[:3, :3])
        ended = np.asarray(solve(bandit.fisher, bandit.gradient, 0.0, 2, 0.0).x)
        errors += [np.abs(ended[:3] - np.array([4, -2, -2]) / 3), abs(eigenvalues[0])]
        damped = np.asarray(solve(bandit.fisher, bandit.gradient, 0.1, 5, 0.0).x)
        scaled = [_bandit_kl(damped, form) for form in (damped @ bandit.fisher @ damped, bandit.gradient @ damped)]
        for _ in range(6):
            # Single decisions in states met equally often: F is as well conditioned as the policy.
            mdp = decisions(rng.standard_normal((8, 3)), np.full(8, 1 / 8))
            local = local_geometry(mdp, random_policy(rng, mdp, 5.0))
            least = np.linalg.pinv(local.fisher, rcond=1e-12) @ local.gradient
            scale = np.linalg.norm(least)
            x = np.asarray(solve(local.fisher, local.gradient, 0.0, 40, 1e-11).x)
            errors += [np.linalg.norm(x - least) / scale, abs(x @ local.fisher @ x / (local.gradient @ x) - 1)]
            outside = local.gradient + 0.1 * np.linalg.norm(local.gradient) / np.sqrt(local.gradient.size)
            diverged = np.asarray(solve(local.fisher, outside, 0.0, 40, 0.0).x)
            grown.append(float(np.linalg.norm(diverged)) / scale)
            left.append(float(np.linalg.norm(outside - local.fisher @ diverged) / np.linalg.norm(outside)))
            errors.append(float(solve(local.fisher, outside, 0.1, 40, 1e-11).residual))
        kept = _iterates_keep_the_identity(rng)
    return Evidence(
        worst([*errors, kept]),
        (
            "The bandit's $F$ has the eigenvalues "
            f"{', '.join(number(value if value > 1e-12 else 0, 6) for value in eigenvalues)}; conjugate "
            "gradients ended after 2 products, at $(4, -2, -2)/3$.",
            f"With $g$ a tenth outside the range and no damping the iterate grew to {number(min(grown), 2)} to "
            f"{number(max(grown), 2)} times the solution's length within 40 products; with damping .1 it converged.",
            f"With damping .1, scaling the step by $x^T F x$ gives a KL of {number(scaled[0], 4)} for a radius of "
            f".01; by $g^T x$, {number(scaled[1], 4)}.",
        ),
        shown=bool(
            min(grown) > 2
            and min(left) > 0.05
            and np.abs(eigenvalues[1:] - [0.231898, 0.388102]).max() < 5e-7
            and abs(scaled[0] - 0.009899) < 5e-7
            and abs(scaled[1] - 0.007844) < 5e-7
        ),
    )


def _bandit_kl(x: Array, quadratic: float) -> float:
    """KL(new || old) of the bandit's step along x, scaled to the radius .01 by `quadratic`."""
    return float(kl(softmax_step(float(step_to_radius(jnp.asarray(quadratic), 0.01)) * x[:3]), BANDIT_POLICY))


def softmax_step(step: Float[Array, " A"]) -> Float[Array, " A"]:
    """The bandit's policy after a step in its logits."""
    weight = BANDIT_POLICY * np.exp(step)
    return weight / weight.sum()


def _iterates_keep_the_identity(rng: np.random.Generator) -> float:
    """|x^T F x / g^T x - 1| at worst, over the first iterates on the exact batch of a Garnet MDP."""
    mdp = garnet(rng)
    local = local_geometry(mdp, random_policy(rng, mdp))
    iterates = [solve(local.fisher, local.gradient, 0.0, k, 0.0).x for k in range(1, 8)]
    return worst(abs(x @ local.fisher @ x / (local.gradient @ x) - 1) for x in map(np.asarray, iterates))


CLAIMS = (
    Claim(
        22,
        "A linear objective inside the region",
        r"\theta' \leftarrow \underset{\theta'}{\mathrm{argmax}}\, \nabla_\theta \bar A(\theta)^T (\theta' - \theta) "
        r"\quad \text{subject to a small step}, \qquad \nabla_\theta \bar A(\theta) = \nabla_\theta J(\theta)",
        "Near the old policy the surrogate is replaced by its first-order expansion, whose gradient is the usual "
        "policy gradient.",
        r"L(\theta + h) = g^T h + O(\|h\|^2), \qquad J(\theta + h) - J(\theta) = g^T h + O(\|h\|^2)",
        "Surrogate and return share the slope $g$ at $\\theta$. Further away the three differ, which is what a trust "
        "region is for.",
        "approximation",
        "of first order",
        (surrogate_gradient, movement, evaluate),
        linear_model,
        1e-4,
    ),
    Claim(
        23,
        "Gradient ascent is a trust region of its own",
        r"\max_{\theta'} \; \nabla J^T (\theta' - \theta) \quad \text{subject to} \quad \|\theta' - \theta\|^2 \le "
        r"\epsilon",
        "The plain gradient step is the best one in a Euclidean ball.",
        r"d^* = \frac{g}{2\lambda}, \qquad \lambda = \frac{\|g\|}{2\sqrt{\epsilon}}, \qquad \|d^*\|^2 = \epsilon",
        "By the Cauchy-Schwarz inequality; the radius is a squared length.",
        "right",
        "",
        (step_to_ball,),
        best_step_in_a_ball,
    ),
    Claim(
        24,
        "The Euclidean step",
        r"\theta' = \theta + \sqrt{\frac{\epsilon}{\|\nabla_\theta J\|^2}} \; \nabla_\theta J(\theta)",
        "The length of the plain gradient step for a given ball.",
        r"\theta' = \theta + \sqrt{\epsilon / \|g\|^2} \; g",
        "Right, and its KL is whatever the parametrisation makes of it.",
        "right",
        "",
        (PG.update, step_to_ball),
        euclidean_step,
    ),
    Claim(
        25,
        "KL is locally quadratic",
        r"D_{KL}(\pi_{\theta'} \| \pi_\theta) \approx \tfrac{1}{2} (\theta' - \theta)^T F (\theta' - \theta)",
        "The second-order expansion of KL has the Fisher matrix as its Hessian.",
        r"KL = \tfrac{1}{2} h^T F h + O(\|h\|^3) \quad \text{both ways}, \qquad F = E_d[J^T M J]",
        "In both directions, with a cubic remainder.",
        "right",
        "",
        (fisher_quadratic, fisher_operator, movement),
        quadratic_model,
        1e-4,
    ),
    Claim(
        26,
        "The natural gradient's step length",
        r"\theta' = \theta + \alpha F^{-1} \nabla_\theta J, \qquad \alpha = \sqrt{\frac{2\epsilon}{\nabla J^T F "
        r"\nabla J}}",
        "The step that puts the quadratic model of KL on the radius.",
        r"\alpha = \sqrt{\frac{2\epsilon}{g^T F^{-1} g}}",
        "The step is $\\alpha F^{-1} g$, so its quadratic form is $\\alpha^2 g^T F^{-1} g$. With $F$ in the place of "
        "$F^{-1}$ it overshoots the radius by orders of magnitude.",
        "wrong",
        "$F$ stands where $F^{-1}$ must",
        (NPG.update, step_to_radius, fisher_quadratic),
        step_to_the_radius,
    ),
    Claim(
        27,
        "Conjugate gradients with Fisher-vector products",
        r"F x = g \quad \text{by products } v \mapsto F v",
        "TRPO never forms $F$: it solves for the natural gradient by conjugate gradients.",
        r"x_k^T F x_k = g^T x_k, \qquad x_k \to F^+ g \quad \text{if } g \in \mathrm{range}(F)",
        "In at most as many products as $F$ has distinct eigenvalues, to the solution of least norm. With $g$ "
        "outside the range and no damping there is no solution, and the iterates diverge.",
        "right",
        "if $g$ is in the range of $F$",
        (conjugate_gradients, fisher_operator),
        conjugate_gradient_solution,
        1e-8,
    ),
)
