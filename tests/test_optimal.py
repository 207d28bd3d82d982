"""The best policy: known answers, brute force, the linear programme, and what the iterations say of themselves."""

import itertools

import numpy as np
import pytest
import scipy.sparse as sparse
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from models import random_model
from surefoot.errors import SettingError
from surefoot.tabular import MDP, library, modified_policy_iteration, optimal, policy_iteration, value_iteration

METHODS = [policy_iteration, value_iteration, modified_policy_iteration]
TOLERANT = METHODS[1:]
DISCOUNTS = (0.0, 0.5, 0.9, 0.99, 0.999)
SEEDS = st.integers(0, 2**32 - 1)

every_method = pytest.mark.parametrize("method", METHODS, ids=lambda method: method.__name__)
tolerant_methods = pytest.mark.parametrize("method", TOLERANT, ids=lambda method: method.__name__)


def bellman_residual(mdp, value):
    action_value = mdp.reward + mdp.discount * mdp.expected_next(value)
    return float(np.max(np.abs(action_value.max(axis=1) - value)))


def linear_programme(mdp):
    """The least V with V >= r_a + g P_a V for every action."""
    own = np.repeat(np.eye(mdp.states), mdp.actions, axis=0)
    matrix = mdp.matrix.toarray() if sparse.issparse(mdp.matrix) else mdp.matrix
    solved = linprog(
        np.ones(mdp.states),
        A_ub=mdp.discount * matrix - own,
        b_ub=-mdp.reward.ravel(),
        bounds=(None, None),
        method="highs",
        options={"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10},
    )
    assert solved.status == 0
    return solved.x


def near(mdp, value, tolerance=1e-8):
    """Equal but for the error that a residual of `tolerance`, and rounding, allow."""
    return pytest.approx(value, rel=0, abs=1.01 * tolerance / (1 - mdp.discount) + 1e-10 * mdp.scale)


def random_garnet(rng):
    states = int(rng.integers(1, 25))
    branching = int(rng.integers(1, min(states, 4) + 1))
    seed, dense = int(rng.integers(2**32)), bool(rng.integers(2))
    return library.garnet(states, int(rng.integers(1, 5)), branching, float(rng.choice(DISCOUNTS)), seed, dense=dense)


def random_line(rng):
    """Sparse, with moves to near states only, rows of uneven length, ends, many ties and far rewards."""
    states, actions, far = int(rng.integers(1, 80)), int(rng.integers(1, 4)), rng.random() < 0.2
    transition = np.zeros((states, actions, states))
    for state, action in np.ndindex(states, actions):
        count = states if far and rng.random() < 0.05 else rng.integers(1, 4)
        to = rng.integers(states, size=count) if count > 3 else state + rng.integers(-2, 3, size=count)
        np.add.at(transition[state, action], np.clip(to, 0, states - 1), rng.dirichlet(np.ones(count)))
    if rng.random() < 0.5:
        end = rng.integers(states)
        transition[end] = np.eye(states)[end]
    reward = np.full((states, actions), -1.0) if rng.random() < 0.5 else rng.standard_normal((states, actions))
    reward[rng.integers(states)] = rng.choice([0.0, 5.0])
    matrix = sparse.csr_array(transition.reshape(-1, states))
    return MDP(matrix, reward, float(rng.choice(DISCOUNTS[:4])), 0)


@pytest.fixture
def moving_window(monkeypatch):
    """Small models take the way of large ones whose sweeps are slow; says how often windows passed."""
    passes = []
    original = optimal._solve_in_passing
    monkeypatch.setattr(optimal, "_SLOW", 0.0)
    monkeypatch.setattr(optimal, "_PATIENCE", 2)
    monkeypatch.setattr(optimal, "_STEPS", 4)
    monkeypatch.setattr(optimal, "_MARGIN", 2)
    monkeypatch.setattr(optimal, "_STATES", 3)
    monkeypatch.setattr(optimal, "_STRIDE", 2)
    monkeypatch.setattr(optimal, "_solve_in_passing", lambda *arguments: passes.append(original(*arguments)))
    return passes


@every_method
def test_two_states_are_solved_as_by_hand(method):
    best = method(library.equality(0.9))
    assert best.action[0] == 1
    assert best.action[1] == 0
    assert best.value == pytest.approx([1.0, 0.0], abs=1e-7)
    assert best.expected_return == pytest.approx(1.0, abs=1e-7)
    assert best.converged


@every_method
def test_three_decisions_are_worth_six(method):
    best = method(library.three_decisions())
    assert best.expected_return == 6.0
    assert best.value.shape == best.action.shape == (3, 2)
    assert best.converged


@every_method
def test_no_deterministic_policy_is_better(method, rng):
    small = [random_model(rng, largest_states=4) for _ in range(10)]
    for mdp in [library.chain(7), library.grid(2, discount=0.9), library.grid(5, 1), *small]:
        matrix = mdp.matrix.toarray() if sparse.issparse(mdp.matrix) else mdp.matrix
        states, choices = np.arange(mdp.states), list(itertools.product(range(mdp.actions), repeat=mdp.states))
        steps = matrix.reshape(mdp.states, mdp.actions, -1)[states, np.array(choices)]
        rewards = mdp.reward[states, np.array(choices)]
        values = np.linalg.solve(np.eye(mdp.states) - mdp.discount * steps, rewards[..., None])[..., 0]
        best = method(mdp)
        assert best.value == near(mdp, values.max(axis=0))
        assert values[choices.index(tuple(best.action))] == near(mdp, values.max(axis=0), 2e-8)


@given(SEEDS)
@settings(max_examples=40)
def test_the_methods_agree_with_the_linear_programme(seed):
    mdp = random_garnet(np.random.default_rng(seed))
    expected = linear_programme(mdp)
    for method in METHODS:
        if method is value_iteration and mdp.discount > 0.99:
            continue
        best = method(mdp)
        assert best.converged
        assert best.value == near(mdp, expected)
        assert best.expected_return == pytest.approx(mdp.start @ best.value, abs=1e-12 * mdp.scale)


@pytest.mark.parametrize("discount", DISCOUNTS)
@every_method
def test_one_state_is_worth_its_largest_reward_for_ever(method, discount):
    mdp = MDP(np.ones((1, 3, 1)), [[1.0, 3.0, 2.0]], discount, 0)
    best = method(mdp)
    assert best.value == near(mdp, [3 / (1 - discount)])
    assert best.action == [1]


@every_method
def test_equal_actions_do_not_keep_it_from_ending(method, rng):
    for mdp in (random_garnet(rng), library.grid(5), library.grid(6, slip=0.0)):
        matrix = mdp.matrix.toarray() if sparse.issparse(mdp.matrix) else mdp.matrix
        transition = np.repeat(matrix.reshape(mdp.states, mdp.actions, -1), 3, axis=1)
        tied = MDP(transition, np.repeat(mdp.reward, 3, axis=1), min(mdp.discount, 0.99), mdp.start)
        best = method(tied)
        assert best.converged
        assert len(best.sweeps) < (100 if method is not value_iteration else 5000)
        assert best.value == near(tied, policy_iteration(mdp.with_discount(tied.discount)).value)


def test_policy_iteration_ends_where_sparse_evaluation_leaves_rounding():
    best = policy_iteration(library.grid(42))
    assert best.converged
    assert best.sweeps[-1].changed == 0


@every_method
def test_an_end_is_worth_nothing_and_its_neighbour_one_step(method):
    best = method(library.grid(4, slip=0.0, discount=0.9))
    assert best.value[-1] == pytest.approx(0.0, abs=1e-7)
    assert best.value[-2] == pytest.approx(-1.0, abs=1e-7)
    assert best.expected_return == pytest.approx(-(1 - 0.9**6) / (1 - 0.9), abs=1e-6)


@tolerant_methods
@given(seed=SEEDS, tolerance=st.sampled_from([1e-3, 1e-6, 1e-8]))
@settings(max_examples=20)
def test_the_residual_told_is_that_of_the_value_returned(method, seed, tolerance):
    mdp = random_model(np.random.default_rng(seed), discounts=(0.0, 0.3, 0.9, 0.99))
    best = method(mdp, tolerance=tolerance)
    assert best.converged
    assert best.residual <= tolerance
    assert best.residual == pytest.approx(bellman_residual(mdp, best.value), rel=0, abs=1e-14 * mdp.scale)
    assert best.residual == best.sweeps[-1].residual
    action_value = mdp.reward + mdp.discount * mdp.expected_next(best.value)
    taken = np.take_along_axis(action_value, best.action[:, None], axis=1)[:, 0]
    assert np.all(taken >= action_value.max(axis=1) - 1e-12 * mdp.scale)


@every_method
def test_a_limit_that_comes_first_is_told(method):
    mdp = library.garnet(50, 4, 3, 0.99)
    best = method(mdp, limit=2)
    assert not best.converged
    assert len(best.sweeps) == 2
    assert best.residual == pytest.approx(bellman_residual(mdp, best.value), rel=1e-9)
    assert best.residual > 1e-3


@pytest.mark.parametrize("mdp", [library.garnet(200, 3, 3, 0.999), library.grid(20, discount=0.999), library.chain(50)])
def test_a_tolerance_below_rounding_ends_and_is_not_called_converged(mdp):
    best = modified_policy_iteration(mdp, tolerance=0.0)
    assert len(best.sweeps) < 200
    assert best.residual <= 1e-14 * mdp.scale
    assert best.converged == (best.residual == 0)


@tolerant_methods
@pytest.mark.parametrize("wrong", [{"tolerance": -1.0}, {"tolerance": float("nan")}, {"limit": 0}])
def test_settings_without_a_meaning_are_refused(method, wrong):
    with pytest.raises(SettingError, match=r"must be"):
        method(library.equality(), **wrong)


@every_method
def test_sparse_and_dense_models_have_the_same_optimum(method, rng):
    for discount in (0.0, 0.9, 0.99):
        dense = library.garnet(60, 4, 3, discount, seed=int(rng.integers(2**32)), dense=True)
        thin = MDP(sparse.csr_array(dense.matrix), dense.reward, discount, dense.start)
        first, second = method(dense), method(thin)
        assert first.value == near(dense, second.value)
        assert np.array_equal(first.action, second.action)


def test_full_models_are_solved_too(rng):
    transition = rng.dirichlet(np.ones(40), size=(40, 20))
    mdp = MDP(transition, rng.standard_normal((40, 20)), 0.99, 0)
    assert modified_policy_iteration(mdp).value == near(mdp, policy_iteration(mdp).value)


@given(SEEDS)
@settings(max_examples=30)
def test_modified_policy_iteration_rises_to_the_best_value_and_never_crosses_it(seed):
    mdp = random_line(np.random.default_rng(seed))
    best, before = policy_iteration(mdp).value, np.full(mdp.states, -np.inf)
    slack = 1e-11 * mdp.scale
    for limit in range(1, 8):
        value = modified_policy_iteration(mdp, limit=limit).value
        assert np.all(value >= before - slack)
        assert np.all(value <= best + slack)
        before = value


def test_a_moving_window_finds_the_best_value_of_every_kind_of_line(moving_window, rng):
    for _ in range(100):
        mdp = random_line(rng)
        best = modified_policy_iteration(mdp)
        assert best.converged
        assert best.value == near(mdp, policy_iteration(mdp).value)
        assert best.residual == pytest.approx(bellman_residual(mdp, best.value), rel=0, abs=1e-14 * mdp.scale)
    assert len(moving_window) > 50


def test_a_moving_window_also_solves_states_that_cannot_reach_the_best_one(moving_window):
    halves = sparse.block_diag([library.chain(40).matrix, library.chain(30).matrix], format="csr")
    reward = np.concatenate([library.chain(40).reward, 0.5 * library.chain(30).reward])
    mdp = MDP(halves, reward, 0.95, np.full(70, 1 / 70))
    best = modified_policy_iteration(mdp)
    assert moving_window
    assert best.value == near(mdp, policy_iteration(mdp).value)
    assert best.expected_return == pytest.approx(best.value.mean(), abs=1e-12 * mdp.scale)


def test_threads_change_no_bit(monkeypatch, rng):
    mdp = library.garnet(3000, 3, 3, 0.99, seed=int(rng.integers(2**32)))
    alone = modified_policy_iteration(mdp)
    monkeypatch.setattr(optimal, "_TRANSITIONS_A_THREAD", 5000)
    monkeypatch.setattr(optimal.os, "cpu_count", lambda: 3)
    assert len(optimal._parts(optimal.discounted_rows(mdp))[0]) == 3
    together = modified_policy_iteration(mdp)
    assert np.array_equal(alone.value, together.value)
    assert np.array_equal(alone.action, together.action)


def test_the_model_stays_as_it_was():
    mdp = library.grid(100)
    arrays = [mdp.matrix.data, mdp.matrix.indices, mdp.matrix.indptr, mdp.reward, mdp.start]
    before = [array.copy() for array in arrays]
    modified_policy_iteration(mdp)
    assert all(np.array_equal(*pair) for pair in zip(arrays, before, strict=True))


@pytest.mark.parametrize("mdp", [library.garnet(20_000, 4, 3, 0.99), library.grid(141)], ids=["garnet", "grid"])
def test_twenty_thousand_states_are_solved_to_the_residual(mdp):
    best = modified_policy_iteration(mdp, tolerance=1e-8)
    assert best.converged
    assert bellman_residual(mdp, best.value) <= 1.001e-8
    assert len(best.sweeps) < 20
