"""Policies: the one that acts on the host is the one that learns."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces
from scipy.stats import kstest

import surefoot as sf
from surefoot import config
from surefoot.networks import ACTIVATIONS
from surefoot.policy import HostPolicy, TabularPolicy, flatten, make_policy

ACTIONS = {
    "discrete": spaces.Discrete(4, start=2),
    "multidiscrete": spaces.MultiDiscrete([2, 3], start=[0, 5]),
    "multibinary": spaces.MultiBinary(3),
    "box": spaces.Box(np.float32([-1, 0, -np.inf]), np.float32([3, np.inf, np.inf])),
}
MASKS = {"discrete": 4, "multidiscrete": 5}
OBSERVATION = spaces.Dict({"a": spaces.Box(-np.inf, np.inf, (3,)), "b": spaces.Discrete(3, start=-1)})


def observations(rng, count):
    return {"a": rng.normal(size=(count, 3), loc=4).astype(np.float32), "b": rng.integers(-1, 2, count)}


def policies(kind, activation, key, rng, dtype):
    policy = make_policy(OBSERVATION, ACTIONS[kind], config.Network(hidden=(8, 5), activation=activation), key, dtype)
    theta, rebuild = flatten(policy)
    policy = rebuild(theta + 0.3 * jnp.asarray(rng.normal(size=theta.shape), dtype))
    policy = policy.observed(observations(rng, 50), np.ones(50, bool))
    return policy, HostPolicy(policy)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(("kind", "masked"), [*((kind, False) for kind in ACTIONS), *((kind, True) for kind in MASKS)])
def test_the_policy_on_the_host_is_the_policy(kind, activation, masked, key, rng, dtype):
    policy, host = policies(kind, activation, key, rng, dtype)
    seen = observations(rng, 20)
    mask = rng.random((20, MASKS[kind])) < 0.6 if masked else None
    if masked:
        mask[:, [0, MASKS[kind] - 1]] = True
    distribution = policy(seen, mask)
    outputs = host.outputs(seen)
    tolerance = {"rtol": 1e-4, "atol": 1e-5} if dtype == np.float32 else {"rtol": 1e-12, "atol": 1e-12}
    told = host.distribution(outputs, mask)
    for one, other in zip(jax.tree.leaves(told), jax.tree.leaves(distribution), strict=True):
        assert isinstance(one, np.ndarray)
        assert one.dtype == other.dtype
        np.testing.assert_allclose(one, other, **tolerance)
    noise = host.noise((20,), rng)
    assert noise.dtype == dtype
    assert noise.shape == distribution.noise(key).shape
    for acted, expected in (
        (host.sample(outputs, mask, noise), distribution.sample_from(jnp.asarray(noise))),
        (host.mode(outputs, mask), distribution.mode()),
    ):
        assert isinstance(acted, np.ndarray)
        assert acted.dtype == expected.dtype
        np.testing.assert_allclose(acted, expected, **tolerance)
        given = host.action_map(acted)
        assert isinstance(given, np.ndarray)
        np.testing.assert_allclose(given, policy.action_map(expected), **tolerance)


@pytest.mark.parametrize("kind", ACTIONS)
def test_the_host_draws_the_noise_that_the_distribution_draws(kind, key, rng):
    policy, host = policies(kind, "tanh", key, rng, np.float32)
    ours = host.noise((4000,), rng)
    theirs = np.asarray(policy(observations(rng, 4000)).noise(key))
    assert len(np.unique(ours)) > 0.99 * ours.size
    for dimension in range(ours.shape[1]):
        assert kstest(ours[:, dimension], theirs[:, dimension]).pvalue > 1e-4


def test_an_action_that_underflows_is_not_impossible(x64):
    table = TabularPolicy(np.array([[0.0, -2000.0, -np.inf]]))
    assert table.probabilities()[0, 1] > 0
    assert table.probabilities()[0, 2] == 0
    mdp = sf.tabular.MDP(np.ones((1, 3, 1)), np.array([[1.0, 0.0, 0.0]]), 0.9, 0)
    before = TabularPolicy(np.array([[0.0, -500.0, -np.inf]]))
    assert sf.certify(before, table, mdp).mean_kl < 1e-200


def box_policy(key, dtype, **network):
    space = spaces.Box(-np.inf, np.inf, (3,))
    return make_policy(space, spaces.Box(-1, 1, (2,)), config.Network(**{"hidden": (8,), **network}), key, dtype)


def far(rng, count, dtype):
    """Observations whose mean and spread are nothing like 0 and 1."""
    return rng.normal(size=(count, 3), loc=[5, -200, 0.01], scale=[0.1, 30, 1e-3]).astype(dtype)


def test_what_the_normaliser_sees_later_moves_no_action(key, rng, dtype):
    policy = box_policy(key, dtype)
    first, later = far(rng, 100, dtype), 1.3 * far(rng, 300, dtype)
    policy = policy.observed(first, np.ones(100, bool))
    seen = policy.observed(later, np.ones(300, bool))
    assert np.all(np.asarray(seen.normaliser.std) > 1.1 * np.asarray(policy.normaliser.std))
    tolerance = 1e-3 if dtype == np.float32 else 1e-10
    moved = np.asarray(policy(first).kl(seen(first)))
    np.testing.assert_allclose(moved, 0, atol=tolerance**2)
    np.testing.assert_allclose(
        seen(first).mean, policy(first).mean, atol=tolerance * float(jnp.abs(policy(first).mean).max())
    )


def test_a_feature_that_begins_to_vary_blows_no_weight_up(key, rng, dtype):
    # A contact that nothing had touched: to make up for a standard deviation that goes from 1e-4 to 1 would multiply
    # the weights by ten thousand, and the policy would hang on that feature alone.
    policy = box_policy(key, dtype)
    still, moving = rng.normal(size=(100, 3)).astype(dtype), rng.normal(size=(100, 3)).astype(dtype)
    still[:, 1] = 0
    policy = policy.observed(still, np.ones(100, bool))
    seen = policy.observed(moving, np.ones(100, bool))
    before, after = np.asarray(policy.network.weights[0]), np.asarray(seen.network.weights[0])
    np.testing.assert_array_equal(before[1], after[1])
    assert np.all(before[[0, 2]] != after[[0, 2]])
    shift = (seen.normaliser.mean - policy.normaliser.mean) / policy.normaliser.std
    np.testing.assert_allclose(seen.network.biases[0], shift[::2] @ before[::2], rtol=1e-3, atol=1e-6)


def test_what_the_normaliser_sees_first_sets_the_scale(key, rng, x64):
    policy = box_policy(key, np.float64)
    first = far(rng, 100, np.float64)
    seen = policy.observed(first, np.ones(100, bool))
    for before, after in zip(policy.network.weights, seen.network.weights, strict=True):
        np.testing.assert_array_equal(before, after)
    features = seen.normaliser(first)
    np.testing.assert_allclose([features.mean(), features.std()], [0, 1], atol=0.01)


def test_rows_that_are_not_real_and_features_that_are_not_normalised_change_nothing(key, rng, x64):
    policy = make_policy(OBSERVATION, ACTIONS["box"], config.Network(hidden=(8,)), key, np.float64)
    policy = policy.observed(observations(rng, 50), np.ones(50, bool))
    unseen = policy.observed(observations(rng, 50), np.zeros(50, bool))
    for one, other in zip(jax.tree.leaves(policy), jax.tree.leaves(unseen), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12)
    seen = policy.observed(observations(rng, 500), np.ones(500, bool))
    np.testing.assert_array_equal(policy.network.weights[0][3:], seen.network.weights[0][3:])  # the one-hot ones


def test_no_step_takes_a_log_std_below_the_least_one_and_one_on_it_can_rise(key, dtype):
    policy = box_policy(key, dtype, log_std=-1.0, least_log_std=-1.5)
    theta, rebuild = flatten(policy)
    low = rebuild(theta - 3)
    np.testing.assert_array_equal(low.log_std, np.full(2, -1.5, dtype))
    assert low.log_std.dtype == dtype
    on_it, again = flatten(low)
    slope = jax.grad(lambda t: jnp.sum(again(t).log_std))(on_it)
    assert float(jnp.sum(slope)) == pytest.approx(2)
    np.testing.assert_allclose(again(on_it + 0.25).log_std, -1.25, rtol=1e-6)


def test_a_first_log_std_below_the_least_is_refused():
    with pytest.raises(sf.SettingError, match=r"log_std must be at least least_log_std, -1\.5, but -3 came"):
        config.make_run(log_std=-3.0)
    config.make_run(log_std=-3.0, least_log_std=-4.0)
