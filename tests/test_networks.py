"""Normaliser, perceptron and critic: statistics against NumPy, units that keep the function, fits that fit."""

from __future__ import annotations

from functools import partial
from itertools import pairwise

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from surefoot import config
from surefoot.critic import CriticState, fit, make_critic
from surefoot.networks import ACTIVATIONS, Normaliser, Perceptron

observe = jax.jit(lambda normaliser, features, real: normaliser.observe(features, real))
normalise = jax.jit(lambda normaliser, features: normaliser(features))


def unseen(active, dtype=np.float32) -> Normaliser:
    return Normaliser.identity(np.asarray(active), dtype)


def assert_saw(normaliser: Normaliser, everything: np.ndarray, **tolerance):
    """The statistics are NumPy's over everything that was seen."""
    everything = np.asarray(everything, np.float64)
    assert float(normaliser.count) == len(everything)
    np.testing.assert_allclose(normaliser.mean, everything.mean(axis=0), **tolerance)
    np.testing.assert_allclose(normaliser.variance, everything.var(axis=0), **tolerance)


# Normaliser


@given(
    features=hnp.arrays(np.float64, (16, 2), elements=st.floats(-100, 100)),
    batch_of=hnp.arrays(np.int64, 16, elements=st.integers(0, 4)),
)
@example(features=np.arange(32.0).reshape(16, 2), batch_of=np.zeros(16, int))
@example(features=np.arange(32.0).reshape(16, 2), batch_of=np.full(16, 4))
@settings(max_examples=60)
def test_merged_statistics_are_those_of_everything_seen_whatever_the_batches(features, batch_of):
    with jax.enable_x64(True):
        normaliser = unseen([True, True], np.float64)
        for k in range(4):  # rows of batch 4 are never real
            normaliser = observe(normaliser, features, batch_of == k)
        seen = features[batch_of < 4]
        if len(seen):
            assert_saw(normaliser, seen, rtol=1e-9, atol=1e-9)
        else:
            assert np.array_equal(normaliser.mean, [0, 0])
            assert np.array_equal(normaliser.variance, [1, 1])


@pytest.mark.parametrize("splits", [(24,), (1, 23), (8, 8, 8), (23, 1), (1,) * 6])
def test_batches_of_any_size_and_leading_axes_merge_to_the_same(splits, x64, rng):
    features = rng.normal(size=(sum(splits), 2, 3), loc=[5, -1, 0], scale=[1, 10, 0.1])
    normaliser = unseen([True] * 3, np.float64)
    for part in np.split(features, np.cumsum(splits)[:-1]):
        normaliser = normaliser.observe(jnp.asarray(part), jnp.ones(part.shape[:-1], bool))
    assert_saw(normaliser, features.reshape(-1, 3), rtol=1e-12, atol=1e-13)


def test_large_offsets_cost_no_digits_in_single_precision(rng):
    features = rng.normal(size=(20, 256, 2), loc=[1e4, -3e3], scale=[1e-1, 1e-2]).astype(np.float32)
    normaliser = unseen([True, True])
    for part in features:
        normaliser = observe(normaliser, part, np.ones(256, bool))
    everything = features.reshape(-1, 2).astype(np.float64)
    np.testing.assert_allclose(normaliser.mean, everything.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(np.sqrt(normaliser.variance), everything.std(axis=0), rtol=5e-3)


def test_drifting_features_merge_right_in_single_precision(rng):
    features = np.stack([rng.normal(size=(64, 1), loc=10 * k, scale=1 + k) for k in range(30)]).astype(np.float32)
    normaliser = unseen([True])
    for part in features:
        normaliser = observe(normaliser, part, np.ones(64, bool))
    assert_saw(normaliser, features.reshape(-1, 1), rtol=1e-5)


def test_normalised_features_have_the_stated_formula_and_are_clipped_at_ten(dtype, rng):
    normaliser = observe(
        unseen([True, True], dtype), (rng.normal(size=(100, 2)) * [2, 5] + 3).astype(dtype), np.ones(100, bool)
    )
    features = np.array([[0.0, 1.0], [1e3, -1e9], [3.5, 2.5]], dtype)
    expected = (features - np.asarray(normaliser.mean)) / np.sqrt(np.asarray(normaliser.variance) + 1e-8)
    told = np.asarray(normalise(normaliser, features))
    assert told.dtype == dtype
    np.testing.assert_allclose(told, np.clip(expected, -10, 10), rtol=1e-5 if dtype == np.float32 else 1e-12)
    assert told[1].tolist() == [10, -10]


def test_a_normaliser_that_has_seen_nothing_changes_nothing(dtype, rng):
    features = rng.normal(size=(5, 3)).astype(dtype)
    np.testing.assert_allclose(normalise(unseen([True] * 3, dtype), features), features, rtol=1e-6)


@pytest.mark.parametrize("active", [[False, True, False], [False, False, False]])
def test_inactive_features_pass_unchanged(active, rng):
    features = rng.normal(size=(40, 3), loc=50, scale=20).astype(np.float32)
    told = np.asarray(normalise(observe(unseen(active), features, np.ones(40, bool)), features))
    inactive = ~np.asarray(active)
    assert np.array_equal(told[:, inactive], features[:, inactive])
    assert np.all(np.abs(told[:, np.asarray(active)]) < 5)


@pytest.mark.parametrize("garbage", [0.0, 1e6, 1e30, np.inf, np.nan])
def test_rows_that_are_not_real_leave_no_trace_whatever_they_hold(garbage, rng):
    features = rng.normal(size=(12, 2), loc=3).astype(np.float32)
    real = np.arange(12) % 3 != 0
    dirty = np.where(real[:, None], features, np.float32(garbage))
    normaliser = observe(unseen([True, True]), dirty, real)
    assert_saw(normaliser, features[real], rtol=1e-5)
    again = observe(normaliser, dirty, np.zeros(12, bool))
    for before, after in zip(jax.tree.leaves(normaliser), jax.tree.leaves(again), strict=True):
        assert np.array_equal(before, after)


def test_a_constant_feature_gives_zero_and_no_nan():
    features = np.full((30, 1), 7.3, np.float32)
    normaliser = observe(unseen([True]), features, np.ones(30, bool))
    np.testing.assert_allclose(normalise(normaliser, features), 0, atol=0.1)
    assert np.all(np.isfinite(normalise(normaliser, features + 1)))


# Perceptron


@pytest.mark.parametrize("sizes", [(6, 4, 6, 1), (4, 2)])
def test_weights_are_orthogonal_with_the_stated_gains_and_biases_zero(sizes, key, dtype):
    network = Perceptron(sizes, "tanh", final_gain=0.01, key=key, dtype=dtype)
    gains = [np.sqrt(2)] * (len(sizes) - 2) + [0.01]
    layers = zip(network.weights, network.biases, gains, pairwise(sizes), strict=True)
    for weight, bias, gain, shape in layers:
        assert weight.shape == shape
        assert weight.dtype == dtype
        singular = np.linalg.svd(np.asarray(weight, np.float64), compute_uv=False)
        np.testing.assert_allclose(singular, gain, rtol=1e-5)
        assert np.array_equal(bias, np.zeros(shape[1]))


def test_layers_and_keys_give_different_weights(key):
    make = partial(Perceptron, (6, 6, 6, 6), "tanh", final_gain=np.sqrt(2))
    one, other = make(key=key), make(key=jax.random.fold_in(key, 1))
    assert not np.allclose(one.weights[0], one.weights[1])
    assert not np.allclose(one.weights[0], other.weights[0])
    assert np.array_equal(one.weights[0], make(key=key).weights[0])


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_outputs_are_those_of_the_layers_one_after_the_other_for_any_leading_axes(activation, x64, key, rng):
    network = Perceptron((3, 5, 4, 2), activation, final_gain=1.0, key=key, dtype=np.float64)
    network = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape)), network)
    function = {
        "tanh": np.tanh,
        "relu": lambda x: np.maximum(x, 0),
        "silu": lambda x: x / (1 + np.exp(-x)),
        "elu": lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0))),
    }[activation]
    x = rng.normal(size=(4, 6, 3))
    (first, second, last), (a, b, c) = (map(np.asarray, layers) for layers in (network.weights, network.biases))
    expected = function(function(x @ first + a) @ second + b) @ last + c
    np.testing.assert_allclose(network(jnp.asarray(x)), expected, rtol=1e-11, atol=1e-12)
    np.testing.assert_allclose(network(jnp.asarray(x[1, 2])), expected[1, 2], rtol=1e-11, atol=1e-12)


# Critic

SPACE = spaces.Box(-np.inf, np.inf, (3,))
SETTINGS = config.Critic(hidden=(16,), step_size=3e-3, epochs=20, minibatch=32)
ROWS = 128

fitted = jax.jit(fit, static_argnums=1)
rescaled = jax.jit(lambda critic, mean, std: critic.rescaled(mean, std))
values = jax.jit(lambda critic, observation: critic(observation))


def fresh(dtype=np.float32, settings: config.Critic = SETTINGS) -> CriticState:
    return make_critic(SPACE, settings, jax.random.key(7), dtype=dtype)


@pytest.fixture
def observation(rng) -> np.ndarray:
    return rng.normal(size=(ROWS, 3)).astype(np.float32)


def lesson(observation) -> np.ndarray:
    """Something smooth to learn, of mean near 0 and standard deviation near 1."""
    return np.sin(observation[:, 0]) + 0.7 * observation[:, 1]


ONES = np.ones(ROWS, np.float32)


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (5.0, 0.01), (-1e6, 1e6), (3.0, 1e-6)])
def test_rescaling_leaves_the_value_function_as_it_was(mean, std, x64, observation, rng):
    critic = fresh(np.float64).critic
    critic = eqx.tree_at(lambda c: c.network, critic, jax.tree.map(lambda x: x + 0.3, critic.network))
    before = np.asarray(values(critic, observation))
    for units in ((mean, std), (0.5, 2.0), (mean, std)):
        critic = rescaled(critic, *units)
        assert (float(critic.mean), float(critic.std)) == units
        np.testing.assert_allclose(values(critic, observation), before, rtol=1e-9, atol=1e-9 * max(1, abs(mean)))
    assert before.std() > 0.1


def test_fit_lowers_the_error_and_says_by_how_much(observation, key):
    target = 3 * lesson(observation) - 1
    state = fresh()
    errors, reports = [], []
    for k in range(4):
        errors.append(np.mean((np.asarray(values(state.critic, observation)) - target) ** 2))
        state, report = fitted(state, SETTINGS, observation, target, ONES, jax.random.fold_in(key, k))
        reports.append(report)
        after = np.mean((np.asarray(values(state.critic, observation)) - target) ** 2)
        assert float(report.loss) == pytest.approx(after / float(report.target_std) ** 2, rel=1e-3)
        assert float(report.target_mean) == pytest.approx(target.mean(), rel=1e-5)
        assert float(report.target_std) == pytest.approx(target.std(), rel=1e-3)
    assert errors[0] > 2 * errors[1] > 2 * errors[3]
    assert float(reports[0].explained_variance) < 0.5 < 0.9 < float(reports[3].explained_variance)
    assert int(state.fits) == 4


@pytest.mark.parametrize(("scale", "offset"), [(1e6, 0), (1e3, 0), (1e-3, 0), (1e-6, 0), (1.0, 1e3), (1e6, -1e7)])
def test_targets_of_every_scale_and_offset_are_fitted_as_well_as_those_of_scale_one(scale, offset, observation, key):
    def explained(target):
        state = fresh()
        for k in range(4):
            state, report = fitted(
                state, SETTINGS, observation, target.astype(np.float32), ONES, jax.random.fold_in(key, k)
            )
        return float(report.explained_variance)

    plain = explained(lesson(observation))
    assert plain > 0.9
    assert explained(scale * lesson(observation) + offset) == pytest.approx(plain, abs=0.02)


GARBAGE = {
    "nan target": (0.0, np.nan),
    "huge target": (0.0, 1e30),
    "nan observation": (np.nan, 0.0),
    "far": (1e4, -1e4),
}


@pytest.mark.parametrize("name", GARBAGE)
def test_rows_of_weight_zero_take_no_part_whatever_they_hold(name, observation, key):
    weight = (np.arange(ROWS) % 4 != 1).astype(np.float32)
    clean = np.where(weight[:, None] > 0, observation, 0), np.where(weight > 0, lesson(observation), 0)
    dirty = (
        np.where(weight[:, None] > 0, observation, GARBAGE[name][0]),
        np.where(weight > 0, lesson(observation), GARBAGE[name][1]),
    )
    outcomes = [
        fitted(fresh(), SETTINGS, x.astype(np.float32), y.astype(np.float32), weight, key) for x, y in (clean, dirty)
    ]
    for one, other in zip(*map(jax.tree.leaves, outcomes), strict=True):
        assert np.all(np.isfinite(other))
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def test_fit_follows_the_weights(observation, key):
    half = np.arange(ROWS) < ROWS // 2
    target = np.where(half, 1.0, -1.0).astype(np.float32)
    blind = np.zeros_like(observation)  # one input: the best constant is the weighted mean
    state, report = fitted(fresh(), SETTINGS, blind, target, np.where(half, 3.0, 1.0).astype(np.float32), key)
    assert float(report.target_mean) == pytest.approx(0.5, abs=1e-5)
    assert float(values(state.critic, blind)[0]) == pytest.approx(0.5, abs=0.15)


@pytest.mark.parametrize("constant", [0.0, 1.0, 0.1, 3.825429588812092, -6.418746248340135, 1e4 / 3, 1e-5 / 3])
@pytest.mark.parametrize("rows", [ROWS, 100])
def test_constant_targets_explain_nothing_and_do_not_collapse_the_unit(constant, rows, observation, key):
    weight = (np.arange(ROWS) < rows).astype(np.float32)
    state = fresh()
    for k in range(3):
        before = float(state.critic.std)
        state, report = fitted(
            state, SETTINGS, observation, np.full(ROWS, constant, np.float32), weight, jax.random.fold_in(key, k)
        )
        assert float(report.explained_variance) == 0
        assert (1 if k == 0 else 0.7) * before <= float(report.target_std) <= before
        assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves((state, report)))
    error = np.asarray(values(state.critic, observation))[:rows] - constant
    assert np.sqrt(np.mean(error**2)) < 0.1


def test_a_batch_of_one_transition_is_fitted_without_nan(observation, key):
    state = fresh()
    for k in range(2):
        state, report = fitted(
            state, SETTINGS, observation[:1], np.array([4.2], np.float32), ONES[:1], jax.random.fold_in(key, k)
        )
        assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves((state, report)))
        assert float(report.explained_variance) == 0
    assert float(values(state.critic, observation[:1])[0]) == pytest.approx(4.2, abs=0.2)


def test_a_batch_without_experience_changes_no_value_and_gives_no_nan(observation, key):
    state, _ = fitted(fresh(), SETTINGS, observation, lesson(observation), ONES, key)
    after, report = fitted(state, SETTINGS, observation, np.full(ROWS, np.nan, np.float32), 0 * ONES, key)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves((after, report)))
    assert float(report.explained_variance) == 0


@pytest.mark.parametrize(
    ("factor", "noise", "expected"),
    [(1.0, 0.0, 1.0), (0.0, 1.0, None), (-1.0, 0.0, -3.0), (2.0, 0.0, 0.75), (1.0, 1.0, None)],
)
def test_explained_variance_is_one_less_the_share_of_variance_left_before_the_fit(
    factor, noise, expected, observation, key, rng
):
    state, _ = fitted(fresh(), SETTINGS, observation, lesson(observation), ONES, key)
    value = np.asarray(values(state.critic, observation), np.float64)
    target = factor * value + 10 + noise * rng.normal(size=ROWS)
    weight = rng.uniform(0.5, 2, size=ROWS)
    _, report = fitted(state, SETTINGS, observation, target.astype(np.float32), weight.astype(np.float32), key)
    moment = lambda x: np.average((x - np.average(x, weights=weight)) ** 2, weights=weight)  # noqa: E731
    truth = 1 - moment(target - value) / moment(target)
    assert float(report.explained_variance) == pytest.approx(truth, abs=2e-5)
    assert expected is None or truth == pytest.approx(expected, abs=1e-9)
    assert float(report.value_mean) == pytest.approx(np.average(value, weights=weight), abs=1e-5)


def test_units_are_those_of_all_targets_for_ten_fits_and_forget_after_that(observation, key):
    quick = config.Critic(hidden=(2,), epochs=1, minibatch=ROWS)
    state, seen = fresh(settings=quick), []
    for k in range(13):
        seen.append((k + 1) * lesson(observation) + 5 * k)
        before = state.critic
        state, _ = fitted(state, quick, observation, seen[-1].astype(np.float32), ONES, key)
        if k < 10:
            assert float(state.critic.mean) == pytest.approx(np.mean(seen), rel=1e-4, abs=1e-5)
            assert float(state.critic.std) == pytest.approx(np.std(seen), rel=1e-4)
        else:
            mean = 0.9 * float(before.mean) + 0.1 * seen[-1].mean()
            spread = 0.9 * (float(before.std) ** 2 + float(before.mean) ** 2) + 0.1 * np.mean(seen[-1] ** 2) - mean**2
            assert float(state.critic.mean) == pytest.approx(mean, rel=1e-4)
            assert float(state.critic.std) == pytest.approx(np.sqrt(spread), rel=1e-4)


@pytest.mark.parametrize("minibatch", [50, 1000])
def test_minibatches_that_do_not_divide_the_batch_or_exceed_it_still_fit(minibatch, observation, key):
    settings = config.Critic(hidden=(16,), step_size=1e-2, epochs=80, minibatch=minibatch)
    state, report = fitted(fresh(settings=settings), settings, observation, lesson(observation), ONES, key)
    assert float(report.loss) < 0.3
    assert np.isfinite(values(state.critic, observation)).all()


def test_fit_and_normaliser_do_not_touch_each_other(observation, key):
    state = fresh()
    critic = state.critic.observed(observation, np.ones(ROWS, bool))
    assert_saw(critic.normaliser, observation, rtol=1e-5, atol=1e-5)
    after, _ = fitted(state._replace(critic=critic), SETTINGS, observation, lesson(observation), ONES, key)
    for one, other in zip(jax.tree.leaves(critic.normaliser), jax.tree.leaves(after.critic.normaliser), strict=True):
        assert np.array_equal(one, other)
