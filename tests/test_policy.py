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
