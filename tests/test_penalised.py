"""Penalty, dual and PPO against closed forms; the natural rules' other solvers, matrices and constraints."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import surefoot as sf
from surefoot.geometry import dense_matrix, empirical_fisher_operator, fisher_operator
from surefoot.policy import flatten
from surefoot.rules import RULES
from surefoot.rules.ppo import clipped_surrogate
from surefoot.tabular import exact_batch, library, penalty, tabular_policy
from surefoot.tabular import update as exact_update
from test_rules import make_batch, update

BANDIT, PI, A = library.bandit(), np.array([[[0.5, 0.3, 0.2]]]), np.array([1.0, -1.0, -1.0])


def bandit_step(name, memory=None, **settings):
    """One exact update of the bandit: (probabilities, memory, report)."""
    rule = sf.exact_rule(name, **settings)
    memory = rule.init(tabular_policy(PI)) if memory is None else memory
    new, memory, report = exact_update(rule, PI, memory, exact_batch(BANDIT, PI))
    return new.probabilities()[0], memory, report


def advantage():
    return A - PI[0, 0] @ A


@pytest.mark.parametrize("multiplier", [0.05, 1.0, 20.0])
def test_the_penalised_closed_forms_are_those_of_the_theory(multiplier):
    new, _, _ = bandit_step("kl-penalty", multiplier=multiplier, divergence="reverse-kl")
    np.testing.assert_allclose(new, penalty.softened(PI[0, 0], advantage(), multiplier), atol=1e-12)
    new, _, _ = bandit_step("kl-penalty", multiplier=multiplier, divergence="kl")
    np.testing.assert_allclose(new, penalty.mode_covering(PI[0, 0], advantage(), multiplier), atol=1e-10)


@pytest.mark.parametrize("divergence", ["kl", "reverse-kl"])
def test_gradient_steps_approach_the_penalised_closed_form(divergence):
    settings = {"multiplier": 2.0, "divergence": divergence, "stop": None}
    closed, _, _ = bandit_step("kl-penalty", **settings)
    steps, _, _ = bandit_step("kl-penalty", inner="gradient", epochs=3000, step_size=0.003, **settings)
    np.testing.assert_allclose(steps, closed, atol=1e-6)


@pytest.mark.parametrize(
    ("adapt", "multiplier", "factor"),
    [("doubling", 0.5, 2.0), ("doubling", 7.0, 1.0), ("doubling", 50.0, 0.5), ("none", 0.5, 1.0), ("sqrt", 5.0, None)],
)
def test_lambda_follows_the_radius_by_the_published_rules(adapt, multiplier, factor):
    _, memory, report = bandit_step("kl-penalty", adapt=adapt, multiplier=multiplier)
    factor = np.sqrt(report.kl / 0.01) if factor is None else factor
    assert memory.multiplier == pytest.approx(multiplier * factor, rel=1e-6)
    assert report.multiplier == pytest.approx(multiplier, rel=1e-6)


@pytest.mark.parametrize("descent", ["multiplicative", "additive"])
def test_the_dual_reaches_the_exact_multiplier_and_policy(descent):
    new, memory, report = bandit_step("dual", radius=0.1, descent=descent, outer=60)
    assert report.multiplier == pytest.approx(2.119895, abs=1e-6)
    assert memory.multiplier == pytest.approx(2.119895, abs=1e-6)
    assert new[0] == pytest.approx(0.719795, abs=1e-6)
    assert report.reverse_kl == pytest.approx(0.1, abs=1e-6)
    assert report.multiplier_path.shape == (60,)
    assert report.multiplier_path[0] == 1.0


def test_the_multiplicative_dual_takes_the_iterations_that_the_theory_states():
    for radius, iterations in ((1e-4, 4), (0.1, 11), (0.5, 42)):
        _, _, report = bandit_step("dual", radius=radius, outer=200)
        path = report.multiplier_path
        assert abs(int(np.argmax(np.abs(path / path[-1] - 1) < 1e-10)) - iterations) <= 2


def test_the_dual_of_an_inactive_constraint_is_zero_and_greedy():
    new, memory, report = bandit_step("dual", radius=0.8)
    assert memory.multiplier == report.multiplier == 0
    np.testing.assert_allclose(new, [1, 0, 0], atol=1e-12)


def test_the_dual_with_a_fixed_step_projects_lambda_to_zero_and_above():
    _, _, report = bandit_step("dual", radius=0.3, descent="additive", multiplier_step=50.0, outer=20)
    assert report.multiplier_path.min() == 0
    assert (report.multiplier_path >= 0).all()


@pytest.mark.long
def test_the_dual_on_samples_brings_the_kl_to_the_radius(key):
    policy, batch = make_batch(key, size=256)
    rule = RULES["dual"](radius=0.005, stop=None, step_size=1e-3, minibatch=64, outer=20)
    memory = rule.init(policy)
    run, kls = jax.jit(rule.update), []
    for turn in range(40):
        _, memory, report = run(policy, memory, batch, jax.random.fold_in(key, turn))
        kls.append(float(report.reverse_kl))
    assert report.accepted
    assert 0.5 < np.mean(kls[-10:]) / 0.005 < 2
    assert report.multiplier_path.shape == (20,)


def test_the_clipped_surrogate_is_the_source_s_formula(key):
    policy, batch = make_batch(key)
    theta, rebuild = flatten(policy)
    moved = rebuild(theta + 0.3 * jax.random.normal(key, theta.shape))
    ratio = np.exp(np.asarray(moved(batch.observation).log_prob(batch.action) - batch.old.log_prob(batch.action)))
    a, weight = np.asarray(batch.advantage), np.asarray(batch.weight)
    assert (np.abs(ratio - 1) > 0.2).any()
    expected = np.sum(weight * np.minimum(ratio * a, np.clip(ratio, 0.8, 1.2) * a))
    np.testing.assert_allclose(clipped_surrogate(moved, batch, jnp.asarray(0.2)), expected, rtol=1e-4)


@pytest.mark.long
def test_ppo_stops_at_the_exact_kl_and_without_a_stop_goes_on(key):
    policy, batch = make_batch(key, size=256)
    settings = {"step_size": 3e-3, "epochs": 60}
    free = update(RULES["ppo"](**settings), policy, batch)[2]
    held = update(RULES["ppo"](**settings, stop=0.01), policy, batch)[2]
    assert free.kl > 0.03
    assert 0.01 < held.kl < 0.6 * free.kl
    assert held.multiplier == 0


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("npg", "categorical"),
        ("npg", "gaussian"),
        pytest.param("npg", "multicategorical", marks=pytest.mark.long),
        pytest.param("npg", "bernoulli", marks=pytest.mark.long),
        ("trpo", "gaussian"),
    ],
)
def test_the_formed_matrix_and_conjugate_gradients_give_one_step(name, kind, key, x64):
    policy, batch = make_batch(key, kind, dtype=np.float64)
    formed = update(RULES[name](solver="dense", subsample=1.0), policy, batch)
    solved = update(RULES[name](subsample=1.0, iterations=200, tolerance=1e-12), policy, batch)
    for one, other in zip(jax.tree.leaves(formed[0]), jax.tree.leaves(solved[0]), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
    assert formed[2].accepted
    assert formed[2].solver_residual < 1e-9


def test_the_formed_matrix_finds_the_minimum_norm_solution_of_a_singular_one():
    new, _, report = bandit_step("npg", radius=0.01, solver="dense")
    np.testing.assert_allclose(new, [0.570243, 0.257854, 0.171903], atol=1e-6)
    assert report.solver_residual < 1e-12


def test_the_empirical_matrix_is_the_metric_where_every_action_is_enumerated(x64, rng):
    mdp = library.garnet(5, 3, 2, 0.9)
    table = tabular_policy(rng.dirichlet(np.ones(3), size=5))
    batch = exact_batch(mdp, table)
    theta, _ = flatten(table)
    metric, empirical = (dense_matrix(f(table, batch), theta) for f in (fisher_operator, empirical_fisher_operator))
    np.testing.assert_allclose(metric, empirical, atol=1e-12)


@pytest.mark.long
def test_the_empirical_matrix_is_the_outer_products_of_scores(key, x64):
    policy, batch = make_batch(key, "gaussian", size=16, dtype=np.float64)
    theta, rebuild = flatten(policy)
    scores = jax.jacobian(lambda t: rebuild(t)(batch.observation).log_prob(batch.action))(theta)
    expected = (scores * batch.weight[:, None]).T @ scores
    for chunk in (0, 5):
        operator = empirical_fisher_operator(policy, batch, chunk=chunk)
        np.testing.assert_allclose(dense_matrix(operator, theta), expected, atol=1e-10)


@pytest.mark.parametrize("divergence", ["kl", "reverse-kl"])
@pytest.mark.parametrize("constraint", ["mean", "max"])
def test_trpo_holds_the_kl_that_it_was_asked_to_hold(constraint, divergence, key):
    policy, batch = make_batch(key, size=256)
    new, _, report = update(RULES["trpo"](constraint=constraint, divergence=divergence, radius=0.02), policy, batch)
    after = new(batch.observation)
    each = np.asarray(batch.old.kl(after) if divergence == "kl" else after.kl(batch.old))
    held = each.mean() if constraint == "mean" else each.max()
    assert report.accepted
    assert 0.3 * 0.02 < held <= 0.02 * (1 + 1e-5)


def test_npg_to_the_largest_kl_is_shorter_than_to_the_mean(key):
    policy, batch = make_batch(key, size=256)
    mean, largest = (update(RULES["npg"](radius=0.01, constraint=c), policy, batch)[2] for c in ("mean", "max"))
    assert largest.max_kl == pytest.approx(0.01, rel=0.3)
    assert largest.step_length < mean.step_length
    assert largest.predicted_kl < 0.01


def test_inner_closed_forms_are_refused_for_networks(key):
    policy, _ = make_batch(key)
    for name in ("kl-penalty", "dual"):
        with pytest.raises(sf.SettingError, match="inner 'closed-form' is for tabular policies"):
            RULES[name](inner="closed-form").init(policy)


@pytest.mark.parametrize("name", RULES)
def test_every_rule_climbs_on_the_frozen_lake(name):
    steps = list(sf.improve(sf.tabular.load("FrozenLake-v1"), sf.exact_rule(name), updates=10))
    assert steps[-1].certificate.new_return > steps[0].certificate.old_return
    for step in steps:
        assert step.certificate.best_bound <= step.certificate.gain + 1e-9
