# ruff: noqa: RUF001 - labels are mathematics
"""The lecture's eight figures, each drawn from what was just computed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from surefoot.bounds import chain_kl, mean_tv, overlap, trpo, tv
from surefoot.certificate import certify
from surefoot.divergences import total_variation
from surefoot.geometry import movement, surrogate_gradient
from surefoot.lecture.cases import Local, exact_step, garnet, local_geometry, random_policy
from surefoot.lecture.drawing import COLOURS, INK, powers, sheet
from surefoot.lecture.region import at, moved
from surefoot.lecture.statement import name_of, number
from surefoot.rules import NPG
from surefoot.tabular import MDP, evaluate, policy_iteration, state_shift
from surefoot.tabular.penalty import softened

Array = np.ndarray


class Drawn(NamedTuple):
    """A figure of the page.

    Attributes:
        title: a few words.
        text: what it shows, with figures that were computed; formulas between dollar signs.
        claims: the numbers of the claims that it illustrates.
        functions: names of what computed it.
        svg: the picture, with its text alternative.
    """

    title: str
    text: str
    claims: tuple[int, ...]
    functions: tuple[str, ...]
    svg: str


def figure(
    title: str, text: str, claims: tuple[int, ...], computed_by: tuple[Callable[..., Any], ...], svg: str
) -> Drawn:
    """A figure with the names of what computed it."""
    return Drawn(title, text, claims, tuple(map(name_of, computed_by)), svg)


def natural_direction(mdp: MDP, old: Array) -> tuple[Local, Array]:
    """The geometry at `old`, and its natural gradient scaled to h^T F h = 1, so that a step t has KL t^2/2."""
    with jax.enable_x64(True):
        local = local_geometry(mdp, old)
    return local, local.natural / np.sqrt(local.natural @ local.fisher @ local.natural)


def linear_model(rng: np.random.Generator) -> Drawn:
    """The return, the surrogate and the linear model along the natural gradient."""
    mdp = garnet(rng)
    old = random_policy(rng, mdp)
    local, direction = natural_direction(mdp, old)
    radius = 0.02
    edge = np.sqrt(2 * radius)
    length = np.linspace(-edge, 6 * edge, 57)
    before = evaluate(mdp, old).expected_return
    horizon = mdp.effective_horizon
    with jax.enable_x64(True):
        policies = [at(local, t * direction) for t in length]
        surrogate = np.array([float(moved(policy, local.batch).surrogate_gain) for policy in policies]) * horizon
    gain = np.array([evaluate(mdp, policy).expected_return for policy in policies]) - before
    line = length * float(local.gradient @ direction) * horizon
    inside, far = np.argmin(np.abs(length - edge)), -1
    alternative = (
        f"Line chart. Along the natural gradient the linear model rises in a straight line; the true gain and the "
        f"surrogate leave it below. At the edge of the trust region the gain is {number(gain[inside])} of a promised "
        f"{number(line[inside])}, six times as far {number(gain[far])} of {number(line[far])}."
    )
    with sheet("linear-model", alternative) as drawn:
        axes = drawn.axes[0]
        axes.axvspan(-edge, edge, color=COLOURS["blue"], alpha=0.12, linewidth=0)
        axes.plot(length, line, color=INK, linestyle="--", label="linear model gᵀh / (1−γ)")
        axes.plot(length, surrogate, color=COLOURS["orange"], label="surrogate L(π′)")
        axes.plot(length, gain, color=COLOURS["blue"], label="true gain J(π′) − J(π)")
        axes.set(xlabel="step along F⁻¹g, as √(2 KL)", ylabel="change of return")
        axes.text(0, axes.get_ylim()[1], f"KL ≤ {number(radius)}", ha="center", va="top", color=INK, fontsize=8.5)
        axes.legend(loc="lower right")
    text = (
        "All three share value and slope at the old policy. At the region's edge the linear model promises "
        f"{number(line[inside] / gain[inside])} times the true gain; six times as far, "
        f"{number(line[far] / gain[far])} times."
    )
    return figure(
        "The objective and its linear model", text, (6, 22), (surrogate_gradient, movement, evaluate), drawn.svg
    )


def drift(rng: np.random.Generator) -> Drawn:
    """The state law's shift over time, against everything that bounds it."""
    mdp = garnet(rng)
    old = random_policy(rng, mdp)
    new, report = exact_step(mdp, old, "npg", radius=1e-3)
    shift = state_shift(mdp, old, new, 30)
    t = np.arange(1, 31)
    curves = {
        "2εt, the lecture": (2 * shift.linear, "red", "--"),
        "εt": (shift.linear, "red", "-"),
        "1 − (1−ε)ᵗ": (shift.geometric, "violet", "-"),
        "Σ E TV(π, π′)": (shift.mean_tv, "orange", "-"),
        "1 − mₜ, overlap": (shift.overlap, "green", "-"),
        "√(½ Σ E KL)": (shift.chain_kl, "teal", "-"),
        "TV(pₜ, p′ₜ)": (shift.tv, "blue", "-"),
    }
    alternative = (
        "Line chart over 30 steps, logarithmic. The true shift of the state law settles at "
        f"{number(shift.tv[30], 2)}; the bounds grow with time: at t = 30 the chain rule's is "
        f"{number(shift.chain_kl[30], 2)}, the overlap's {number(shift.overlap[30], 2)}, epsilon t "
        f"{number(shift.linear[30], 2)}, the lecture's {number(2 * shift.linear[30], 2)}."
    )
    with sheet("drift", alternative, height=3.7) as drawn:
        axes = drawn.axes[0]
        for label, (values, colour, style) in curves.items():
            axes.plot(t, values[1:], color=COLOURS[colour], linestyle=style, label=label)
        axes.set(xlabel="t, transitions", ylabel="distance of the state laws", yscale="log")
        powers(axes.yaxis)
        axes.figure.legend(loc="outside right upper")
    text = (
        f"A natural step of KL {number(float(report.kl), 2)}. After 30 steps the laws are {number(shift.tv[30], 2)} "
        f"apart; the lecture allows {number(2 * shift.linear[30], 2)}, the best bound without the dynamics, by the "
        f"chain rule of KL, {number(shift.chain_kl[30], 2)}."
    )
    return figure("How far the state law drifts", text, (8, 11, 12, 16), (state_shift,), drawn.svg)


def gain_and_bounds(rng: np.random.Generator) -> Drawn:
    """True gain, surrogate gain and what can be proven, for natural steps of growing length."""
    mdp = garnet(rng)
    old = random_policy(rng, mdp)
    local, direction = natural_direction(mdp, old)
    divergence = np.logspace(-7, 0, 43)
    account = [certify(old, at(local, np.sqrt(2 * radius) * direction), mdp) for radius in divergence]
    shown = {"tv": "green", "overlap": "violet", "chain-kl": "teal", "mean-tv": "orange", "trpo": "red"}
    lower = {name: np.array([c.bounds[name].lower for c in account]) for name in shown}
    furthest = {name: divergence[values > 0].max(initial=0) for name, values in lower.items()}
    promised = np.array([c.surrogate_gain for c in account])
    gain = np.array([c.gain for c in account])
    alternative = (
        "Log-log chart. Surrogate and true gain grow with the square root of the KL. Each lower bound follows them "
        "and then falls to nothing at a KL of its own: "
        + ", ".join(f"{name} at {number(v, 2)}" for name, v in furthest.items())
        + "."
    )
    with sheet("gain-and-bounds", alternative, height=3.7) as drawn:
        axes = drawn.axes[0]
        axes.plot(divergence, promised, color=INK, linestyle="--", label="surrogate gain")
        axes.plot(divergence, np.where(gain > 0, gain, np.nan), color=COLOURS["blue"], linewidth=2.2, label="true gain")
        for name, colour in shown.items():
            values = np.where(lower[name] > 0, lower[name], np.nan)
            axes.plot(divergence, values, color=COLOURS[colour], label=f"bound {name}")
        axes.set(xscale="log", yscale="log", xlabel="KL of the step (quadratic model)", ylabel="change of return")
        axes.set_ylim(promised.min() / 10, promised.max() * 2)
        powers(axes.xaxis)
        powers(axes.yaxis)
        axes.figure.legend(loc="outside right upper")
    known = {name: value for name, value in furthest.items() if name not in ("tv", "overlap")}
    best = max(known, key=lambda name: known[name])
    text = (
        f"Without the new policy's states or the dynamics, `{best}` proves an improvement up to a KL of "
        f"{number(known[best], 2)} here, `trpo` up to {number(furthest['trpo'], 2)}. The true gain is positive far "
        "beyond."
    )
    return figure(
        "What can be proven of a step", text, (14, 15, 16), (certify, tv, overlap, chain_kl, mean_tv, trpo), drawn.svg
    )


def soft_to_greedy(rng: np.random.Generator) -> Drawn:
    """The natural gradient's step from no change to policy iteration."""
    mdp = garnet(rng)
    old = random_policy(rng, mdp)
    account = evaluate(mdp, old)
    eta = np.logspace(-3, 2, 51)
    policies = [softened(old, account.advantage, (1 - mdp.discount) / value) for value in eta]
    returns = np.array([evaluate(mdp, policy).expected_return for policy in policies])
    greedy = softened(old, account.advantage, 0.0)
    limits = {
        "old policy": account.expected_return,
        "greedy policy": evaluate(mdp, greedy).expected_return,
        "best policy": policy_iteration(mdp).expected_return,
    }
    # The state whose decision is the least one-sided at first.
    state = int(np.argmin(old[np.arange(mdp.states), np.argmax(account.advantage, axis=1)]))
    apart = [float(account.visitation @ total_variation(policy, greedy)) for policy in policies]
    alternative = (
        f"Two line charts over eta. Left: the return rises from {number(limits['old policy'])} to the greedy policy's "
        f"{number(limits['greedy policy'])}; the best is {number(limits['best policy'])}. Right: in one state the "
        f"probability of the best action goes from {number(old[state].min(), 2)} to 1."
    )
    with sheet("soft-to-greedy", alternative, panels=2) as drawn:
        left, right = drawn.axes
        left.plot(eta, returns, color=COLOURS["blue"])
        for (name, value), style in zip(limits.items(), (":", "--", "-."), strict=True):
            left.axhline(value, color=INK, linewidth=0.9, linestyle=style, label=name)
        left.set(xscale="log", xlabel="η", ylabel="return J")
        left.legend(loc="lower right")
        for action, colour in zip(range(mdp.actions), ("blue", "orange", "green"), strict=True):
            right.plot(
                eta, [policy[state, action] for policy in policies], color=COLOURS[colour], label=f"action {action}"
            )
        right.set(xscale="log", xlabel="η", ylabel=f"π′(a | s = {state})", ylim=(-0.02, 1.02))
        right.legend(loc="center right")
        for axes in drawn.axes:
            powers(axes.xaxis)
    text = (
        f"$\\pi' \\propto \\pi \\exp(\\eta A/(1-\\gamma))$. At $\\eta = {number(eta[0])}$ the policy is "
        f"{number(apart[0], 2)} from greedy in total variation, at $\\eta = {number(eta[-1])}$ it is "
        f"{number(apart[-1], 2)}: policy iteration is the limit."
    )
    return figure("From soft to greedy", text, (1,), (softened, policy_iteration, NPG.update), drawn.svg)
