"""Conjugate gradients, step lengths and backtracking against direct solves and worked cases."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest

from surefoot.steps import backtrack, conjugate_gradients, rescaling, step_to_ball, step_to_radius

BANDIT_POLICY = np.array([0.5, 0.3, 0.2])
BANDIT_FISHER = np.diag(BANDIT_POLICY) - np.outer(BANDIT_POLICY, BANDIT_POLICY)
BANDIT_GRADIENT = np.array([0.5, -0.3, -0.2])


@jax.jit
def solve(matrix, b, damping=0.0, iterations=10, tolerance=1e-5):
    return conjugate_gradients(lambda v: matrix @ v, b, damping=damping, iterations=iterations, tolerance=tolerance)


# One compiled function for a whole range of iteration limits: the iterates themselves.
iterates = jax.jit(
    jax.vmap(
        lambda matrix, b, damping, count: conjugate_gradients(
            lambda v: matrix @ v, b, damping=damping, iterations=count, tolerance=0.0
        ),
        in_axes=(None, None, None, 0),
    )
)


def symmetric(rng, eigenvalues) -> np.ndarray:
    """A symmetric matrix of these eigenvalues in a random basis."""
    basis, _ = np.linalg.qr(rng.normal(size=(len(eigenvalues), len(eigenvalues))))
    return (basis * eigenvalues) @ basis.T


def true_residual(matrix, solution, b, damping=0.0) -> float:
    error = b - matrix @ np.asarray(solution.x) - damping * np.asarray(solution.x)
    return float(np.linalg.norm(error) / np.linalg.norm(b))


def tilted(step) -> np.ndarray:
    """The bandit's policy after a step in its logits."""
    weight = BANDIT_POLICY * np.exp(np.asarray(step, np.float64))
    return weight / weight.sum()


def divergence(p, q) -> float:
    return float(np.sum(p * np.log(p / q)))


# Conjugate gradients

SYSTEMS = {  # eigenvalues, damping
    "identity": (np.ones(12), 0.0),
    "well conditioned": (np.linspace(1, 3, 12), 0.0),
    "condition 1e4": (np.logspace(-4, 0, 12), 0.0),
    "condition 1e6, scale 1e-3": (np.logspace(-9, -3, 12), 0.0),
    "condition 1e12, damped": (np.logspace(-12, 0, 12), 0.1),
    "singular, damped": (np.r_[np.zeros(6), np.linspace(0.5, 2, 6)], 0.01),
    "zero, damped": (np.zeros(12), 0.1),
    "large": (np.logspace(3, 6, 12), 0.0),
}


@pytest.mark.parametrize("name", SYSTEMS)
def test_conjugate_gradients_agree_with_a_direct_solve_and_with_lineax_where_it_converges(name, x64, rng):
    eigenvalues, damping = SYSTEMS[name]
    matrix, b = symmetric(rng, eigenvalues), rng.normal(size=12)
    found = solve(matrix, b, damping, iterations=200, tolerance=1e-11)
    direct = np.linalg.solve(matrix + damping * np.eye(12), b)
    operator = lx.MatrixLinearOperator(jnp.asarray(matrix + damping * np.eye(12)), lx.positive_semidefinite_tag)
    peer = lx.linear_solve(operator, jnp.asarray(b), lx.CG(rtol=1e-9, atol=0.0, max_steps=2000), throw=False)
    agreed = bool(peer.result == lx.RESULTS.successful)
    assert agreed or name == "condition 1e6, scale 1e-3"  # lineax gives up on that one
    condition = np.linalg.cond(matrix + damping * np.eye(12))
    np.testing.assert_allclose(found.x, direct, rtol=0, atol=1e-10 * condition * np.linalg.norm(direct))
    if agreed:
        np.testing.assert_allclose(found.x, peer.value, rtol=0, atol=2e-9 * condition * np.linalg.norm(direct))
    assert bool(found.converged)
    assert bool(found.positive)
    assert true_residual(matrix, found, b, damping) < 1e-10


@pytest.mark.parametrize("distinct", [1, 2, 3, 5])
@pytest.mark.parametrize("damping", [0.0, 0.3])
def test_it_ends_in_as_many_iterations_as_there_are_distinct_eigenvalues(distinct, damping, x64, rng):
    matrix = symmetric(rng, np.resize(np.linspace(1, 4, distinct), 20))
    b = rng.normal(size=20)
    found = solve(matrix, b, damping, iterations=50, tolerance=1e-10)
    assert int(found.iterations) == distinct
    assert bool(found.converged)
    np.testing.assert_allclose(found.x, np.linalg.solve(matrix + damping * np.eye(20), b), rtol=1e-9, atol=1e-9)


def test_right_hand_side_along_one_eigenvector_takes_one_iteration(x64, rng):
    matrix = symmetric(rng, np.arange(1.0, 13))
    _, vectors = np.linalg.eigh(matrix)
    found = solve(matrix, 5 * vectors[:, 3], iterations=50, tolerance=1e-10)
    assert int(found.iterations) == 1
    np.testing.assert_allclose(found.x, 5 / 4 * vectors[:, 3], atol=1e-12)


def test_stops_at_the_limit_and_says_that_it_did_not_converge(x64, rng):
    matrix, b = symmetric(rng, np.logspace(-4, 0, 12)), rng.normal(size=12)
    found = solve(matrix, b, iterations=4, tolerance=1e-10)
    assert int(found.iterations) == 4
    assert not bool(found.converged)
    assert bool(found.positive)


def test_stops_at_the_first_residual_within_the_tolerance(x64, rng):
    matrix, b = symmetric(rng, np.logspace(-2, 0, 12)), rng.normal(size=12)
    residuals = np.asarray(iterates(matrix, b, 0.0, np.arange(13)).residual)
    assert np.all(residuals[:9] > 1e-10)
    for tolerance in (0.5, 0.1, 1e-2):
        found = solve(matrix, b, iterations=12, tolerance=tolerance)
        assert int(found.iterations) == np.argmax(residuals <= tolerance)
        assert float(found.residual) <= tolerance
        assert bool(found.converged)


def test_converged_solve_with_tolerance_zero_stays_finite_through_many_more_iterations(dtype, rng):
    matrix, b = symmetric(rng, np.linspace(1, 2, 6)).astype(dtype), rng.normal(size=6).astype(dtype)
    found = solve(matrix, b, iterations=100, tolerance=0.0)
    np.testing.assert_allclose(found.x, np.linalg.solve(matrix, b), rtol=2e-5 if dtype == np.float32 else 1e-12)
    assert np.isfinite(found.residual)


def test_reported_residual_is_the_recomputed_one_after_every_iteration(x64, rng):
    for eigenvalues, damping in (
        (np.linspace(1, 5, 12), 0.0),
        (np.logspace(-3, 0, 12), 0.0),
        (np.logspace(-6, 0, 12), 0.1),
    ):
        matrix, b = symmetric(rng, eigenvalues), rng.normal(size=12)
        found = iterates(matrix, b, damping, np.arange(9))
        for k in range(9):
            one = jax.tree.map(lambda leaf: leaf[k], found)  # noqa: B023
            assert int(one.iterations) == k
            assert float(one.residual) == pytest.approx(true_residual(matrix, one, b, damping), rel=1e-8)


@pytest.mark.parametrize("damping", [0.0, 0.1])
def test_every_iterate_satisfies_xFx_equals_gx_and_gains_on_the_last(damping, x64, rng):
    matrix, b = symmetric(rng, np.logspace(-2, 0, 12)), rng.normal(size=12)
    x = np.asarray(iterates(matrix, b, damping, np.arange(1, 10)).x)
    quadratic = np.einsum("ki,ij,kj->k", x, matrix + damping * np.eye(12), x)
    np.testing.assert_allclose(quadratic, x @ b, rtol=1e-10)
    assert np.all(np.diff(x @ b) > 0)  # each maximises b x - x F x / 2 over a larger Krylov space


def test_the_iterate_is_the_best_of_its_krylov_space(x64, rng):
    matrix, b = symmetric(rng, np.logspace(-1, 0, 12)), rng.normal(size=12)
    for k in (1, 2, 4):
        krylov, _ = np.linalg.qr(np.stack([np.linalg.matrix_power(matrix, i) @ b for i in range(k)], axis=1))
        best = krylov @ np.linalg.solve(krylov.T @ matrix @ krylov, krylov.T @ b)
        np.testing.assert_allclose(solve(matrix, b, iterations=k, tolerance=0.0).x, best, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("rank", [1, 3, 8])
def test_singular_system_gives_the_minimum_norm_solution(rank, x64, rng):
    matrix = symmetric(rng, np.r_[np.linspace(1, 2, rank), np.zeros(12 - rank)])
    b = matrix @ rng.normal(size=12)
    found = solve(matrix, b, iterations=rank, tolerance=1e-10)
    np.testing.assert_allclose(found.x, np.linalg.pinv(matrix, rcond=1e-9) @ b, rtol=1e-8, atol=1e-9)
    assert bool(found.positive)


def test_zero_right_hand_side_gives_zero_in_no_iterations(dtype, rng):
    found = solve(symmetric(rng, np.linspace(1, 2, 6)).astype(dtype), np.zeros(6, dtype))
    assert np.array_equal(found.x, np.zeros(6))
    assert int(found.iterations) == 0
    assert float(found.residual) == 0
    assert bool(found.converged)
    assert bool(found.positive)


FAULTS = {  # an operator's matrix, and the last iterate that is trusted for b = (1, 2, 3)
    "negative": (-np.eye(3), np.zeros(3)),
    "zero": (np.zeros((3, 3)), np.zeros(3)),
    "nan": (np.full((3, 3), np.nan), np.zeros(3)),
    "infinite": (np.full((3, 3), np.inf), np.zeros(3)),
    "one nan": (np.diag([1.0, np.nan, 1.0]), np.zeros(3)),
    # b F b = 1 + 4 - 4.5 > 0: one step of |b|^2 / b F b is taken before the negative curvature shows
    "indefinite": (np.diag([1.0, 1.0, -0.5]), np.array([1.0, 2.0, 3.0]) * 14 / 0.5),
}


@pytest.mark.parametrize("name", FAULTS)
def test_non_positive_or_non_finite_curvature_is_told_and_leaves_the_iterate_before_it(name, dtype):
    matrix, expected = FAULTS[name]
    found = solve(matrix.astype(dtype), np.array([1.0, 2.0, 3.0], dtype), iterations=10, tolerance=1e-8)
    assert not bool(found.positive)
    assert not bool(found.converged)
    np.testing.assert_allclose(found.x, expected, rtol=1e-5)
    assert np.isfinite(found.residual)


def test_damping_beyond_the_most_negative_eigenvalue_makes_an_indefinite_system_solvable(x64, rng):
    matrix, b = symmetric(rng, np.r_[-0.2, np.linspace(0.1, 1, 11)]), rng.normal(size=12)
    assert not bool(solve(matrix, b, 0.0, iterations=50, tolerance=1e-10).positive)
    found = solve(matrix, b, 0.3, iterations=50, tolerance=1e-10)
    assert bool(found.positive)
    np.testing.assert_allclose(found.x, np.linalg.solve(matrix + 0.3 * np.eye(12), b), rtol=1e-7, atol=1e-9)


def test_one_call_under_vmap_solves_each_lane_as_by_itself(x64, rng):
    matrices = np.stack(
        [symmetric(rng, np.linspace(1, 1 + spread, 8)) for spread in (0, 1, 10)] + [-np.eye(8), np.full((8, 8), np.nan)]
    )
    b = rng.normal(size=(5, 8))
    lanes = jax.jit(jax.vmap(lambda m, r: solve(m, r, iterations=6, tolerance=1e-6)))(matrices, b)
    for i in range(5):
        alone = solve(matrices[i], b[i], iterations=6, tolerance=1e-6)
        for lane, single in zip(lanes, alone, strict=True):
            np.testing.assert_allclose(lane[i], single, rtol=1e-12, atol=1e-14)
    assert list(np.asarray(lanes.positive)) == [True, True, True, False, False]
    assert len(set(np.asarray(lanes.iterations)[:3])) > 1


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e4])
@pytest.mark.parametrize("rank", [3, 40])
def test_single_precision_with_little_damping_gives_no_nan_and_gains_on_the_quadratic_model(scale, rank, rng):
    jacobian = rng.normal(size=(rank, 120)).astype(np.float32)
    matrix = (scale / rank * jacobian.T @ jacobian).astype(np.float32)
    b = rng.normal(size=120).astype(np.float32)  # outside the range of the matrix, as from a subsample
    found = solve(matrix, b, np.float32(0.01), iterations=30, tolerance=1e-6)
    assert found.x.dtype == np.float32
    assert np.all(np.isfinite(found.x))
    assert bool(found.positive)
    x = np.asarray(found.x, np.float64)
    assert b @ x - 0.5 * x @ (matrix.astype(np.float64) @ x + 0.01 * x) > 0


def test_the_result_is_the_same_compiled_and_not(x64, rng):
    matrix, b = symmetric(rng, np.linspace(1, 3, 5)), rng.normal(size=5)
    plain = conjugate_gradients(lambda v: jnp.asarray(matrix) @ v, jnp.asarray(b), iterations=4, tolerance=1e-8)
    for eager, compiled in zip(plain, solve(matrix, b, iterations=4, tolerance=1e-8), strict=True):
        np.testing.assert_allclose(eager, compiled, rtol=1e-12)


# Worked cases 2 and 5


def test_worked_case_5_undamped_solve_on_the_singular_fisher_of_the_bandit(x64):
    np.testing.assert_allclose(np.linalg.eigvalsh(BANDIT_FISHER), [0, 0.231898, 0.388102], atol=5e-7)
    found = solve(BANDIT_FISHER, BANDIT_GRADIENT, iterations=10, tolerance=1e-10)
    assert int(found.iterations) == 2
    assert bool(found.converged)
    np.testing.assert_allclose(found.x, [4 / 3, -2 / 3, -2 / 3], rtol=1e-12)
    np.testing.assert_allclose(found.x, np.linalg.pinv(BANDIT_FISHER) @ BANDIT_GRADIENT, rtol=1e-12)
    assert BANDIT_GRADIENT @ np.asarray(found.x) == pytest.approx(1, abs=1e-12)


def test_worked_case_5_scales_a_damped_step_by_the_true_metric(x64):
    x = np.asarray(solve(BANDIT_FISHER, BANDIT_GRADIENT, 0.1, iterations=10, tolerance=1e-12).x)
    np.testing.assert_allclose(x, [1.049383, -0.555556, -0.493827], atol=5e-7)
    quadratic, linear = x @ BANDIT_FISHER @ x, BANDIT_GRADIENT @ x
    assert quadratic == pytest.approx(0.624752, abs=5e-7)
    assert linear == pytest.approx(0.790123, abs=5e-7)
    by_metric, by_gradient = (
        divergence(tilted(float(step_to_radius(scale, 0.01)) * x), BANDIT_POLICY) for scale in (quadratic, linear)
    )
    assert by_metric == pytest.approx(0.009899, abs=5e-7)
    assert by_gradient == pytest.approx(0.007844, abs=5e-7)


def test_worked_case_2_step_has_the_radius_and_the_lectures_step_six_times_it(x64):
    x = np.asarray(solve(BANDIT_FISHER, BANDIT_GRADIENT, iterations=10, tolerance=1e-12).x)
    alpha = float(step_to_radius(x @ BANDIT_FISHER @ x, 0.01))
    assert alpha == pytest.approx(0.141421, abs=5e-7)
    new = tilted(alpha * x)
    np.testing.assert_allclose(new, [0.570243, 0.257854, 0.171903], atol=5e-7)
    assert divergence(new, BANDIT_POLICY) == pytest.approx(0.009901, abs=5e-7)
    assert divergence(BANDIT_POLICY, new) == pytest.approx(0.009967, abs=5e-7)

    literal = BANDIT_GRADIENT @ BANDIT_FISHER @ BANDIT_GRADIENT
    assert literal == pytest.approx(0.1456, abs=1e-12)
    lecture = float(step_to_radius(literal, 0.01))
    assert lecture == pytest.approx(0.370625, abs=5e-7)
    assert divergence(tilted(lecture * x), BANDIT_POLICY) == pytest.approx(0.064236, abs=5e-7)


# Step lengths


@pytest.mark.parametrize("quadratic", [1e-12, 1e-3, 1.0, 7.0, 1e12])
@pytest.mark.parametrize("radius", [1e-4, 0.01, 2.0])
def test_step_to_radius_puts_the_quadratic_model_on_the_radius(quadratic, radius, dtype):
    alpha = step_to_radius(jnp.asarray(quadratic, dtype), radius)
    assert alpha.dtype == dtype
    assert 0.5 * float(alpha) ** 2 * quadratic == pytest.approx(radius, rel=1e-5 if dtype == np.float32 else 1e-12)


@pytest.mark.parametrize("quadratic", [0.0, -0.0, -1.0, -1e-30, np.nan, np.inf, -np.inf])
def test_step_to_radius_is_zero_where_the_quadratic_is_not_positive_and_finite(quadratic, dtype):
    assert float(step_to_radius(jnp.asarray(quadratic, dtype), 0.01)) == 0
    assert float(jax.jit(step_to_radius)(jnp.asarray(quadratic, dtype), 0.01)) == 0


@pytest.mark.parametrize("radius", [1e-4, 0.01, 4.0])
def test_step_to_ball_has_the_radius_as_its_squared_length(radius, dtype, rng):
    for gradient in (rng.normal(size=7), np.full(7, 1e-6), np.full(7, 1e6)):
        gradient = gradient.astype(dtype)
        alpha = step_to_ball(gradient, radius)
        assert alpha.dtype == dtype
        step = float(alpha) * gradient.astype(np.float64)
        assert step @ step == pytest.approx(radius, rel=1e-5 if dtype == np.float32 else 1e-12)
        assert float(alpha) > 0


@pytest.mark.parametrize("gradient", [[0.0, 0.0], [np.nan, 1.0], [np.inf, 1.0], [-np.inf, np.nan]])
def test_step_to_ball_is_zero_for_a_zero_or_non_finite_gradient(gradient, dtype):
    assert float(step_to_ball(jnp.asarray(gradient, dtype), 0.01)) == 0


# Backtracking


def search(evaluate, acceptable, shrink, limit):
    return jax.jit(lambda: backtrack(evaluate, acceptable, shrink=shrink, limit=limit, dtype=jnp.float32))()


@pytest.mark.parametrize(
    ("largest", "shrink", "limit", "backtracks", "accepted"),
    [
        (1.0, 0.5, 10, 0, True),
        (0.5, 0.5, 10, 1, True),
        (0.3, 0.5, 10, 2, True),
        (0.7, 0.8, 10, 2, True),
        (2.0**-10, 0.5, 10, 10, True),
        (2.0**-11, 0.5, 10, 10, False),
        (0.0, 0.5, 3, 3, False),
        (1.0, 0.5, 0, 0, True),
        (0.9, 0.5, 0, 0, False),
    ],
)
def test_backtrack_stops_at_the_first_acceptable_scale_or_at_the_limit(largest, shrink, limit, backtracks, accepted):
    found = search(lambda scale: 3 * scale, lambda scale, evaluation: evaluation <= 3 * largest, shrink, limit)
    assert int(found.backtracks) == backtracks
    assert bool(found.accepted) == accepted
    assert float(found.scale) == pytest.approx(shrink**backtracks, rel=1e-6)
    assert float(found.evaluation) == pytest.approx(3 * float(found.scale), rel=1e-6)


def test_backtrack_evaluates_exactly_the_candidates_it_tells_of():
    seen = []
    for limit in (0, 1, 4):
        seen.clear()

        def evaluate(scale):
            jax.debug.callback(lambda value: seen.append(float(value)), scale)
            return scale

        search(evaluate, lambda scale, _: scale < 0, 0.5, limit)
        jax.effects_barrier()
        assert seen == [0.5**k for k in range(limit + 1)]


def test_backtrack_refuses_nan_candidates_and_passes_on_to_a_finite_one():
    found = search(lambda scale: jnp.where(scale > 0.3, jnp.nan, scale), lambda scale, kl: kl <= 1, 0.5, 10)
    assert bool(found.accepted)
    assert float(found.scale) == 0.25
    never = search(lambda scale: scale * jnp.nan, lambda scale, kl: kl <= 1, 0.5, 3)
    assert not bool(never.accepted)
    assert int(never.backtracks) == 3


def test_backtrack_hands_scale_and_a_whole_tree_to_the_test():
    found = search(
        lambda scale: {"gain": scale - 0.2, "kl": scale**2},
        lambda scale, told: (told["gain"] > 0) & (told["kl"] <= 0.1) & (scale < 1),
        0.5,
        10,
    )
    assert float(found.scale) == 0.25
    assert float(found.evaluation["gain"]) == pytest.approx(0.05, abs=1e-6)
    assert float(found.evaluation["kl"]) == pytest.approx(0.0625, abs=1e-6)


def test_backtrack_shortens_by_what_the_refused_candidate_says():
    # KL 4 scale^2 and a radius of 1: half the step is just on it.
    found = search(lambda s: 4 * s**2, lambda s, kl: kl <= 1, lambda kl: 0.995 * jnp.sqrt(1 / kl), 10)
    assert int(found.backtracks) == 1
    assert float(found.scale) == pytest.approx(0.4975, rel=1e-6)


@pytest.mark.parametrize(
    ("divergence", "factor"),
    [(1.02, 0.995 / 1.02**0.5), (1.0 + 1e-6, 0.995), (1.2, 0.995 / 1.2**0.5), (4.0, 0.8), (1e30, 0.8)]
    + [(value, 0.8) for value in (1.0, 0.3, 0.0, np.inf, np.nan)],
)
@pytest.mark.parametrize("radius", [1.0, 1e-12])
def test_the_next_candidate_is_just_inside_the_radius_but_for_a_step_far_outside(divergence, factor, radius, x64):
    found = rescaling(jnp.asarray(divergence * radius), jnp.asarray(radius), jnp.asarray(0.8))
    assert float(found) == pytest.approx(factor, rel=1e-6)


def test_backtrack_under_vmap_counts_each_lane_by_itself():
    largest = jnp.asarray([1.0, 0.5, 0.2, 0.0])
    lanes = jax.vmap(lambda top: backtrack(lambda s: s, lambda s, e: e <= top, shrink=0.5, limit=5, dtype=jnp.float32))(
        largest
    )
    assert list(np.asarray(lanes.backtracks)) == [0, 1, 3, 5]
    assert list(np.asarray(lanes.accepted)) == [True, True, True, False]
