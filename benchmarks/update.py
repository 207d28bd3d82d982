"""What an update costs: a Fisher product against a gradient, and a whole TRPO policy update against PPO's.

PPO's is the usual one (10 epochs, minibatches of 64, clipped surrogate, Adam), written here on the same
policy and batch, so that the two differ in nothing but what they compute. Run

    python benchmarks/update.py [--json] [--batch N] [--repeats N]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from gymnasium import spaces

from surefoot import config
from surefoot.batch import rows, sampled_batch
from surefoot.geometry import fisher_operator, surrogate_gradient
from surefoot.policy import flatten, make_policy
from surefoot.rules import TRPO
from surefoot.settings import dumps

PRODUCTS = 10


def half_cheetah_like(size: int):
    """A policy and a batch with HalfCheetah's sizes."""
    keys = jax.random.split(jax.random.key(0), 4)
    policy = make_policy(spaces.Box(-np.inf, np.inf, (17,)), spaces.Box(-1, 1, (6,)), config.Network(), keys[0])
    observation = jax.random.normal(keys[1], (size, 17))
    old = jax.jit(lambda o: policy(o))(observation)
    action = old.sample(keys[2])
    advantage = jnp.tanh(observation[:, 0] + action[:, 0]) + jax.random.normal(keys[3], (size,))
    return policy, sampled_batch(observation, None, action, advantage, old, jnp.ones(size))


def ppo_update(policy, batch, key, *, epochs=10, minibatch=64, clip=0.2, step_size=3e-4):
    """The clipped surrogate's usual inner loop."""
    theta, rebuild = flatten(policy)
    optimiser = optax.adam(step_size, eps=1e-5)
    old_log_prob = batch.old.log_prob(batch.action)
    advantage = (batch.advantage - jnp.mean(batch.advantage)) / jnp.std(batch.advantage)
    batch = eqx.tree_at(lambda b: b.advantage, batch, advantage)

    def loss(theta, part, old_log_prob):
        ratio = jnp.exp(rebuild(theta)(part.observation).log_prob(part.action) - old_log_prob)
        return -jnp.mean(jnp.minimum(ratio * part.advantage, jnp.clip(ratio, 1 - clip, 1 + clip) * part.advantage))

    def step(carry, index):
        theta, state = carry
        gradient = jax.grad(loss)(theta, rows(batch, index), old_log_prob[index])
        change, state = optimiser.update(gradient, state)
        return (theta + change, state), None

    def epoch(carry, key):
        return jax.lax.scan(step, carry, jax.random.permutation(key, batch.size).reshape(-1, minibatch))

    (theta, _), _ = jax.lax.scan(epoch, (theta, optimiser.init(theta)), jax.random.split(key, epochs))
    return rebuild(theta)


def alternating_medians(functions: dict[str, Callable], repeats: int) -> dict[str, float]:
    """Median seconds of each, called in turn so that a drifting machine harms all alike."""
    spent: dict[str, list[float]] = {name: [] for name in functions}
    for function in functions.values():
        jax.block_until_ready(function())
    for _ in range(repeats):
        for name, function in functions.items():
            begun = time.perf_counter()
            jax.block_until_ready(function())
            spent[name].append(time.perf_counter() - begun)
    return {name: float(np.median(values)) for name, values in spent.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--batch", type=int, default=4096)
    parser.add_argument("--repeats", type=int, default=30)
    arguments = parser.parse_args()
    policy, batch = half_cheetah_like(arguments.batch)
    theta, _ = flatten(policy)
    vector = jax.random.normal(jax.random.key(1), theta.shape)

    def gradients(chunk):
        def step(_, v):
            return v + 1e-9 * surrogate_gradient(flatten(policy)[1](theta + 1e-9 * v), batch, chunk=chunk)

        return jax.jit(lambda v: jax.lax.fori_loop(0, PRODUCTS, step, v))

    def products(chunk):
        def run(v):
            operator = fisher_operator(policy, batch, chunk=chunk)
            return jax.lax.fori_loop(0, PRODUCTS, lambda _, v: v + 1e-9 * operator(v), v)

        return jax.jit(run)

    rule = TRPO()
    trpo = jax.jit(lambda p, b, k: rule.update(p, rule.init(p), b, k)[0])
    ppo = jax.jit(ppo_update)
    key = jax.random.key(2)
    chunk = arguments.batch // 8
    compiled = {"gradient": gradients(0), "product": products(0), "chunked_product": products(chunk)}
    seconds = alternating_medians(
        {
            **{name: (lambda f=function: f(vector)) for name, function in compiled.items()},
            "trpo": lambda: trpo(policy, batch, key),
            "ppo": lambda: ppo(policy, batch, key),
        },
        arguments.repeats,
    )
    result = {
        "fisher_product_over_gradient": seconds["product"] / seconds["gradient"],
        "chunked_fisher_product_over_gradient": seconds["chunked_product"] / seconds["gradient"],
        "trpo_update_over_ppo_update": seconds["trpo"] / seconds["ppo"],
        "gradient_seconds": seconds["gradient"] / PRODUCTS,
        "trpo_update_seconds": seconds["trpo"],
        "ppo_update_seconds": seconds["ppo"],
        "batch": arguments.batch,
    }
    if arguments.json:
        print(dumps(result))
    else:
        for name, value in result.items():
            print(f"{name:40} {value:.5g}")


if __name__ == "__main__":
    main()
