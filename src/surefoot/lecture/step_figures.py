# ruff: noqa: RUF001 - labels are mathematics
"""The figures about taking a step: ball and ellipse, multiplier, conjugate gradients, step length."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from surefoot.divergences import kl
from surefoot.geometry import fisher_quadratic, movement
from surefoot.lecture.cases import BANDIT_POLICY, decisions, garnet, local_geometry, random_policy
from surefoot.lecture.constraint import BANDIT_ADVANTAGE, Rows, variance
from surefoot.lecture.drawing import COLOURS, FAINT, INK, powers, sheet
from surefoot.lecture.figures import Drawn, figure, natural_direction
from surefoot.lecture.region import at, moved, solve
from surefoot.lecture.statement import number
from surefoot.steps import conjugate_gradients, step_to_ball, step_to_radius
from surefoot.tabular import MDP, evaluate, library
from surefoot.tabular.penalty import dual_ascent, softened

Array = np.ndarray


def ball_and_ellipse(rng: np.random.Generator) -> Drawn:
    """Two parameters of very unequal effect: two states of one decision each, one seldom met."""
    mdp = library.deterministic([[0, 0], [1, 1]], [[0.0, 1.0], [0.0, 4.0]], 0.0, [0.95, 0.05])
    radius = 0.02
    with jax.enable_x64(True):
        local = local_geometry(mdp, mdp.uniform())
    # Logits (0, theta_s): the second column alone.
    gradient, fisher = local.gradient[1::2], local.fisher[1::2, 1::2]
    natural = np.linalg.solve(fisher, gradient)
    half_axes = np.sqrt(2 * radius / np.diag(fisher))
    with jax.enable_x64(True):
        natural *= float(step_to_radius(jnp.asarray(natural @ fisher @ natural), radius))
        euclidean = float(step_to_ball(jnp.asarray(gradient), half_axes[0] ** 2)) * gradient
    theta = np.linspace(-2.2, 2.2, 121)
    first, second = np.meshgrid(theta, theta)
    taken = 1 / (1 + np.exp(-np.stack([first, second], axis=-1)))
    new = np.stack([1 - taken, taken], axis=-1)
    divergence = kl(mdp.uniform(), new) @ mdp.start
    value = np.sum(new * mdp.reward, axis=-1) @ mdp.start - mdp.start @ np.mean(mdp.reward, axis=1)
    gains = [_two_parameter_gain(mdp, step) for step in (euclidean, natural)]
    alternative = (
        f"Contour plot over two parameters. The set of steps with KL at most {radius} is an ellipse "
        f"{number(half_axes[1] / half_axes[0], 2)} times as long in the parameter of the rare state. The Euclidean "
        "ball inside it holds the plain gradient's step, nearly along the first parameter; the natural step reaches "
        f"the ellipse far along the second and gains {number(gains[1] / gains[0])} times as much."
    )
    with sheet("ball-and-ellipse", alternative, height=4.2) as drawn:
        axes = drawn.axes[0]
        axes.contour(first, second, value, levels=12, colors=FAINT, linewidths=0.6, linestyles="solid")
        axes.contour(first, second, divergence, levels=[radius], colors=COLOURS["blue"], linewidths=1.8)
        turn = np.linspace(0, 2 * np.pi, 91)
        ring = np.cos(turn), np.sin(turn)
        axes.plot(half_axes[0] * ring[0], half_axes[1] * ring[1], color=COLOURS["blue"], linestyle=":", linewidth=1.2)
        axes.plot(half_axes[0] * ring[0], half_axes[0] * ring[1], color=COLOURS["orange"])
        for step, name in ((euclidean, "orange"), (natural, "blue")):
            axes.annotate(
                "", step, (0, 0), arrowprops={"arrowstyle": "-|>", "color": COLOURS[name], "shrinkA": 0, "shrinkB": 0}
            )
        axes.text(0.5, 0.08, "plain gradient,\nEuclidean ball", color=COLOURS["orange"], va="center", fontsize=8.5)
        axes.text(
            0.42, 1.5, f"natural gradient,\nKL = {number(radius)}", color=COLOURS["blue"], va="center", fontsize=8.5
        )
        axes.set(xlim=(-2.2, 2.2), ylim=(-2.2, 2.2), aspect="equal")
        axes.set(xlabel="parameter of the usual state (95 %)", ylabel="parameter of the rare state (5 %)")
        axes.grid(False)
    text = (
        f"The largest ball inside the region of $KL \\le {number(radius)}$ (solid; dotted its quadratic model) leaves "
        f"most of it unused: the natural step gains {number(gains[1])}, the plain one {number(gains[0])}. Grey lines "
        "join equal returns."
    )
    return figure(
        "The ball and the ellipse", text, (23, 24, 25), (step_to_ball, step_to_radius, fisher_quadratic, kl), drawn.svg
    )


def _two_parameter_gain(mdp: MDP, step: Array) -> float:
    taken = 1 / (1 + np.exp(-step))
    new = np.stack([1 - taken, taken], axis=-1)
    return evaluate(mdp, new).expected_return - evaluate(mdp, mdp.uniform()).expected_return


def multipliers(rng: np.random.Generator) -> Drawn:
    """The multiplier on its way: two rules, a step that is too long, and the projection."""
    radius = 0.1
    free = dual_ascent(BANDIT_POLICY, BANDIT_ADVANTAGE, radius, iterations=40)
    fixed = dual_ascent(BANDIT_POLICY, BANDIT_ADVANTAGE, radius).multipliers[-1]
    new = softened(BANDIT_POLICY, BANDIT_ADVANTAGE, fixed)
    limit = 2 * fixed**3 / variance(Rows(np.ones(1), BANDIT_POLICY[None], BANDIT_ADVANTAGE[None]), new[None])
    stable, unstable = (
        dual_ascent(BANDIT_POLICY, BANDIT_ADVANTAGE, radius, eta=share * limit, iterations=40) for share in (0.25, 1.2)
    )
    loose = 0.8
    projected = dual_ascent(BANDIT_POLICY, BANDIT_ADVANTAGE, loose, eta=1.0, iterations=20)
    shrinking = dual_ascent(BANDIT_POLICY, BANDIT_ADVANTAGE, loose, iterations=20)
    zero = int(np.argmax(projected.multipliers == 0))
    below = projected.multipliers[zero - 1] + projected.kls[zero - 1] - loose
    alternative = (
        f"Two line charts over iterations. Left, radius .1: both rules reach lambda {number(fixed, 4)}; with 1.2 "
        "times the largest stable step lambda goes back and forth. Right, radius .8, which binds nothing: lambda "
        f"falls to 0 and the projection holds it there; without it the next value is {number(below, 2)}."
    )
    with sheet("multipliers", alternative, panels=2) as drawn:
        left, right = drawn.axes
        left.axhline(fixed, color=INK, linewidth=0.9, linestyle=":", label="fixed point λ*")
        left.plot(unstable.multipliers, color=COLOURS["red"], linewidth=1, label="λ + η(KL − ε), η 1.2 of its limit")
        left.plot(stable.multipliers, color=COLOURS["orange"], label="λ + η(KL − ε), η a quarter of it")
        left.plot(free.multipliers, color=COLOURS["blue"], label="λ √(KL/ε)")
        left.set(xlabel="iteration", ylabel="λ", title=f"ε = {number(radius)}")
        left.set_ylim(0, 1.7 * max(unstable.multipliers.max(), fixed))
        left.legend(loc="upper right")
        right.axhline(0, color=INK, linewidth=0.8)
        right.plot(
            [zero - 1, zero],
            [projected.multipliers[zero - 1], below],
            "o--",
            color=COLOURS["red"],
            markersize=4,
            label="without the projection",
        )
        right.plot(projected.multipliers, color=COLOURS["orange"], label="max(0, λ + η(KL − ε))")
        right.plot(shrinking.multipliers, color=COLOURS["blue"], label="λ √(KL/ε)")
        right.set(xlabel="iteration", ylabel="λ", title=f"ε = {number(loose)}, which binds nothing")
        right.legend(loc="upper right")
    text = (
        f"The worked bandit. Both rules reach $\\lambda^* = {number(fixed, 7)}$; the additive one only with $\\eta < "
        f"{number(limit)}$. For $\\epsilon = .8 > \\ln 2$ the multiplier must stop at 0; without the projection it "
        f"goes to {number(below, 2)}."
    )
    return figure("The multiplier finds its place", text, (18, 19), (dual_ascent, softened), drawn.svg)


def conjugate_gradient_residuals(rng: np.random.Generator) -> Drawn:
    """|g - (F + damping) x| / |g| by iteration, recomputed and not by the recurrence."""
    mdp = garnet(rng)
    steps = np.arange(0, 21)
    # Single decisions in states met ever more seldom: the eigenvalues of F spread as the weights do.
    seldom = decisions(rng.standard_normal((8, 3)), 0.1 ** np.arange(8) / np.sum(0.1 ** np.arange(8)))
    with jax.enable_x64(True):
        local = local_geometry(mdp, random_policy(rng, mdp))
        rare = local_geometry(seldom, random_policy(rng, seldom))
        outside = local.gradient + 0.1 * np.linalg.norm(local.gradient) / np.sqrt(local.gradient.size)
        systems = {
            "damping .1: well conditioned": (local.fisher, local.gradient, 0.1, "green"),
            "singular, g in its range": (local.fisher, local.gradient, 0.0, "blue"),
            "ill conditioned: rare states": (rare.fisher, rare.gradient, 0.0, "orange"),
            "singular, g outside its range": (local.fisher, outside, 0.0, "red"),
        }
        curves = {
            label: [_true_residual(fisher, g, damping, int(k)) for k in steps]
            for label, (fisher, g, damping, _) in systems.items()
        }
        reached = np.asarray(solve(rare.fisher, rare.gradient, 0.0, 20, 0.0).x)
    astray = np.linalg.norm(reached - rare.natural) / np.linalg.norm(rare.natural)
    ends = {label: values[10] for label, values in curves.items()}
    alternative = (
        "Line chart, logarithmic: relative residual of conjugate gradients over 20 iterations. After 10: "
        + "; ".join(f"{label}, {number(value, 2)}" for label, value in ends.items())
        + "."
    )
    with sheet("conjugate-gradients", alternative) as drawn:
        axes = drawn.axes[0]
        for label, values in curves.items():
            axes.plot(steps, np.maximum(values, 1e-16), color=COLOURS[systems[label][3]], label=label)
        axes.set(
            yscale="log",
            xlabel="products with F",
            ylabel="‖g − (F + c I) x‖ / ‖g‖",
            ylim=(3e-17, 1e9),
            xticks=range(0, 21, 4),
        )
        powers(axes.yaxis)
        axes.figure.legend(loc="outside right upper")
    text = (
        "With $g$ in its range a singular $F$ is solved all the same; outside, the iterates grow without end. On an "
        f"exact batch whose states' weights go down to {number(seldom.start.min(), 2)}, 20 undamped products leave "
        f"little of the residual and yet {number(astray, 2)} of the solution wrong, in the states that are seldom "
        "met: there the closed form is the way."
    )
    return figure("Conjugate gradients, step by step", text, (27,), (conjugate_gradients,), drawn.svg)


def _true_residual(fisher: Array, gradient: Array, damping: float, iterations: int) -> float:
    x = np.asarray(solve(fisher, gradient, damping, iterations, 0.0).x)
    return float(np.linalg.norm(gradient - fisher @ x - damping * x) / np.linalg.norm(gradient))


def step_lengths(rng: np.random.Generator) -> Drawn:
    """The KL that two step lengths really reach, relative to the one that was asked for."""
    mdp = garnet(rng)
    local, _ = natural_direction(mdp, random_policy(rng, mdp))
    radii = np.logspace(-7, -0.5, 40)
    with jax.enable_x64(True):
        forms = {
            "right": local.natural @ local.fisher @ local.natural,
            "literal": local.gradient @ local.fisher @ local.gradient,
        }
        ratios = {
            name: [
                float(
                    moved(at(local, float(step_to_radius(jnp.asarray(form), radius)) * local.natural), local.batch).kl
                )
                / radius
                for radius in radii
            ]
            for name, form in forms.items()
        }
    small = forms["right"] / forms["literal"]
    alternative = (
        "Line chart, both axes logarithmic: measured KL over target KL against the target. With the corrected step "
        f"length the ratio is 1 for small targets; with the lecture's it is {number(ratios['literal'][0])}."
    )
    with sheet("step-lengths", alternative) as drawn:
        axes = drawn.axes[0]
        axes.axhline(1, color=INK, linewidth=0.9, linestyle=":")
        axes.plot(radii, ratios["literal"], color=COLOURS["red"], label="α = √(2ε / gᵀFg), the lecture")
        axes.plot(radii, ratios["right"], color=COLOURS["blue"], label="α = √(2ε / gᵀF⁻¹g)")
        axes.set(xscale="log", yscale="log", xlabel="ε, the KL that was asked for", ylabel="KL measured / ε")
        axes.set_ylim(0.2, 5 * max(ratios["literal"]))
        powers(axes.xaxis)
        powers(axes.yaxis)
        axes.legend(loc="center left")
    at_hundredth = int(np.argmin(np.abs(radii - 1e-2)))
    text = (
        f"For small radii the lecture's step overshoots by $g^T F^{{-1}} g / g^T F g = {number(small)}$ here. At "
        f"$\\epsilon = {number(radii[at_hundredth], 2)}$ it still reaches {number(ratios['literal'][at_hundredth])} "
        f"times the radius, the corrected one {number(ratios['right'][at_hundredth])} times."
    )
    return figure("The length of the natural step", text, (26,), (step_to_radius, movement), drawn.svg)
