"""What one action costs: `Agent.act` on one observation, beyond the network's matrix products.

For every kind of action and of observation, deterministic and sampled, with and without a mask. Times are those of
the fastest of the rounds (slower ones measure what else the machine did), in microseconds, products and whole taken in
turns within each round. Run

    python benchmarks/acting.py [--json] [--rounds N]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from itertools import product
from typing import Any

import jax
import numpy as np
from gymnasium import spaces

from surefoot import Agent, config
from surefoot.policy import make_policy
from surefoot.settings import dumps

LIMIT = 50.0
CALLS = 400
OBSERVATIONS = {
    "vector": spaces.Box(-1, 1, (17,), np.float32),
    "discrete": spaces.Discrete(16),
    "dict": spaces.Dict({"vector": spaces.Box(-1, 1, (4,), np.float32), "choice": spaces.Discrete(3)}),
}
ACTIONS = {
    "box": spaces.Box(-1, 1, (6,), np.float32),
    "discrete": spaces.Discrete(4),
    "multidiscrete": spaces.MultiDiscrete([3, 4]),
    "multibinary": spaces.MultiBinary(4),
}


def microseconds(function: Callable[[], Any]) -> float:
    """Of one call, over many."""
    begun = time.perf_counter()
    for _ in range(CALLS):
        function()
    return (time.perf_counter() - begun) / CALLS * 1e6


def measure(observation: str, action: str, rounds: int) -> dict[str, float]:
    """Microseconds of the products alone and of each way of acting beyond them."""
    observation_space, action_space = OBSERVATIONS[observation], ACTIONS[action]
    observation_space.seed(0)
    policy = make_policy(observation_space, action_space, config.Network(), jax.random.key(0))
    agent = Agent(policy, observation_space, action_space)
    seen = observation_space.sample()
    weights = [np.asarray(weight) for weight in policy.network.weights]
    features = np.zeros(len(weights[0]), np.float32)
    generator = np.random.default_rng(0)

    def products() -> None:
        x = features
        for weight in weights:
            x = x @ weight

    ways: dict[str, Callable[[], Any]] = {"products": products}
    masks = {"": None}
    if policy.head.kind.endswith("Categorical"):
        masks[" masked"] = np.ones(sum(policy.head.sizes), bool)
    for deterministic, (word, mask) in product((True, False), masks.items()):
        name = ("mode" if deterministic else "sample") + word
        ways[name] = lambda d=deterministic, m=mask: agent.act(seen, m, deterministic=d, generator=generator)
    for way in ways.values():
        microseconds(way)
    times = [{name: microseconds(way) for name, way in ways.items()} for _ in range(rounds)]
    found = {name: min(one[name] for one in times) for name in ways}
    beyond = {name: found[name] - found["products"] for name in ways if name != "products"}
    return {"products": found["products"], **beyond}


def main() -> int:
    """Measure every kind; 1 where one is above the limit."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    table = {
        f"{observation} -> {action}": measure(observation, action, arguments.rounds)
        for observation, action in product(OBSERVATIONS, ACTIONS)
    }
    worst = max(value for row in table.values() for name, value in row.items() if name != "products")
    if arguments.json:
        print(dumps({"limit": LIMIT, "worst": worst, "microseconds": table}))
    else:
        for name, row in table.items():
            print(f"{name:<26}", "  ".join(f"{way} {value:.1f}" for way, value in row.items()))
        print(f"worst beyond the products: {worst:.1f} us (limit {LIMIT:.0f})")
    return int(worst > LIMIT)


if __name__ == "__main__":
    raise SystemExit(main())
