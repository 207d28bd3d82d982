"""From a gradient to a step: plain functions on flat parameter vectors.

Failures are values: a solve that met non-positive curvature says so in its result, and a step of length 0
means that there is nothing to do.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

Vector = Float[Array, "P"]
Operator = Callable[[Vector], Vector]


class Solution(NamedTuple):
    """What conjugate gradients found for (F + damping I) x = b.

    Attributes:
        x: the last iterate, [P].
        residual: |b - (F + damping I) x| / |b|, by the recurrence; 0 where b is 0.
        iterations: products with F that were taken.
        converged: whether the residual reached the tolerance.
        positive: whether every curvature p^T (F + damping I) p met was positive and finite. If not, x is the
            iterate before it.
    """

    x: Vector
    residual: Float[Array, ""]
    iterations: Int[Array, ""]
    converged: Bool[Array, ""]
    positive: Bool[Array, ""]


def conjugate_gradients(
    operator: Operator,
    b: Vector,
    *,
    damping: Float[Array, ""] | float = 0.0,
    iterations: int = 10,
    tolerance: Float[Array, ""] | float = 1e-5,
) -> Solution:
    """Solve (F + damping I) x = b for a symmetric positive semidefinite F given by its products.

    Starts at x = 0 with residual b, without a product of F with 0, so that every iterate satisfies
    x^T (F + damping I) x = b^T x and, on a singular F with b in its range, the limit is the
    minimum-norm solution. In exact arithmetic it ends in as many iterations as F has distinct eigenvalues
    that b reaches (Hestenes & Stiefel 1952; Nocedal & Wright 2006, algorithm 5.2).

    Arguments:
        operator: v [P] -> F v [P].
        b: right-hand side, [P].
        damping: added to F's diagonal.
        iterations: the most products to take.
        tolerance: stop once |residual| <= tolerance |b|.

    Differences from the textbook: (1) it stops, and says so, at the first non-positive or non-finite
    curvature; (2) it also stops once the residual is exactly 0.
    """
    b_squared = jnp.vdot(b, b)
    goal = jnp.asarray(tolerance, b.dtype) ** 2 * b_squared

    def unfinished(state):
        _, _, _, r_squared, count, positive = state
        return (count < iterations) & (r_squared > goal) & (r_squared > 0) & positive

    def iterate(state):
        x, r, p, r_squared, count, _ = state
        product = operator(p) + damping * p
        curvature = jnp.vdot(p, product)
        positive = (curvature > 0) & jnp.isfinite(curvature)
        step = jnp.where(positive, r_squared / jnp.where(positive, curvature, 1), 0)
        x = x + step * p
        r = jnp.where(positive, r - step * product, r)
        next_squared = jnp.vdot(r, r)
        p = r + (next_squared / r_squared) * p
        return x, r, p, next_squared, count + 1, positive

    start = (jnp.zeros_like(b), b, b, b_squared, jnp.asarray(0, jnp.int32), jnp.asarray(True))
    x, _, _, r_squared, count, positive = jax.lax.while_loop(unfinished, iterate, start)
    residual = jnp.where(b_squared > 0, jnp.sqrt(r_squared / jnp.where(b_squared > 0, b_squared, 1)), 0)
    return Solution(x, residual, count, r_squared <= goal, positive)


def solve_dense(matrix: Float[Array, "P P"], b: Vector, *, damping: Float[Array, ""] | float = 0.0) -> Solution:
    """Solve (F + damping I) x = b by the eigenvalues of F: the minimum-norm solution where it is singular.

    Directions whose eigenvalue is rounding (P eps of the largest) count as null. Takes O(P^3).
    """
    values, vectors = jnp.linalg.eigh((matrix + matrix.T) / 2)
    values = values + damping
    null = values <= b.size * jnp.finfo(b.dtype).eps * jnp.max(jnp.abs(values))
    x = vectors @ jnp.where(null, 0, (vectors.T @ b) / jnp.where(null, 1, values))
    length, missed = jnp.linalg.norm(b), jnp.linalg.norm(b - matrix @ x - damping * x)
    residual = jnp.where(length > 0, missed / jnp.where(length > 0, length, 1), 0)
    usable = jnp.all(jnp.isfinite(x))
    return Solution(x, residual, jnp.asarray(b.size, jnp.int32), usable, usable)


def step_to_radius(quadratic: Float[Array, ""], radius: Float[Array, ""] | float) -> Float[Array, ""]:
    """alpha = sqrt(2 radius / x^T F x), so that the quadratic model of the KL of alpha x is the radius.

    `quadratic` is x^T F x in the true metric, without damping. 0 where it is not positive and finite:
    then no step along x is known to stay inside the trust region.

    Source: Schulman et al. 2015, appendix C; the lecture's sqrt(2 radius / g^T F g) overshoots.
    """
    usable = (quadratic > 0) & jnp.isfinite(quadratic)
    return jnp.where(usable, jnp.sqrt(2 * radius / jnp.where(usable, quadratic, 1)), 0)


_INSIDE = 0.995
"""Of the length at which the quadratic model meets the radius: room for what the model leaves out."""


def rescaling(divergence: Float[Array, ""], radius: Float[Array, ""], shrink: Float[Array, ""]) -> Float[Array, ""]:
    """The factor that brings a step of this KL just inside the radius, the KL growing with the length's square.

    Never below `shrink`; `shrink` where the KL is not the reason for which the step was refused.
    """
    outside = (divergence > radius) & jnp.isfinite(divergence)
    root = jnp.sqrt(radius / jnp.where(outside, divergence, radius))
    return jnp.where(outside, jnp.maximum(_INSIDE * root, shrink), shrink)


def step_to_ball(gradient: Vector, radius: Float[Array, ""] | float) -> Float[Array, ""]:
    """alpha = sqrt(radius / |g|^2), so that |alpha g|^2 = radius; 0 for a zero or non-finite gradient."""
    squared = jnp.vdot(gradient, gradient)
    usable = (squared > 0) & jnp.isfinite(squared)
    return jnp.where(usable, jnp.sqrt(radius / jnp.where(usable, squared, 1)), 0)


class Search(NamedTuple):
    """The end of a backtracking search.

    Attributes:
        scale: the accepted share of the full step; of the last candidate where none was accepted.
        evaluation: what `evaluate` returned there.
        backtracks: how many times the step was shortened.
        accepted: whether that candidate was acceptable.
    """

    scale: Float[Array, ""]
    evaluation: Any
    backtracks: Int[Array, ""]
    accepted: Bool[Array, ""]


def backtrack(evaluate, acceptable, *, shrink, limit: int, dtype) -> Search:
    """Try scale 1, and as long as it is refused one that is shorter by `shrink`, at most `limit` shortenings.

    Arguments:
        evaluate: scale -> anything (a tree of arrays), such as gain and KL of the candidate.
        acceptable: (scale, evaluation) -> bool. A comparison with NaN is False, so a non-finite candidate
            is refused by any ordinary test.
        shrink: factor between candidates, in (0, 1); or a function that gives it for the evaluation that is refused.
    """
    factor = shrink if callable(shrink) else lambda _: shrink

    def refused(search: Search):
        return ~search.accepted & (search.backtracks < limit)

    def next_candidate(search: Search) -> Search:
        scale = jnp.where(search.backtracks < 0, 1, search.scale * factor(search.evaluation)).astype(dtype)
        evaluation = evaluate(scale)
        return Search(scale, evaluation, search.backtracks + 1, acceptable(scale, evaluation))

    # The full step is the loop's first turn and not a call before it, so `evaluate` is compiled once.
    one = jnp.ones((), dtype)
    nothing = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(evaluate, one))
    before = Search(one, nothing, jnp.asarray(-1, jnp.int32), jnp.asarray(False))
    return jax.lax.while_loop(refused, next_candidate, before)
