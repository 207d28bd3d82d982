"""Environments written in JAX whose dynamics are known."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces

from surefoot.sources.functional import FunctionalEnvironment, Transition


def walk(limit: int = 20, edge: float = 2.5, spoiled: int | None = None, chance: float = 0.0) -> FunctionalEnvironment:
    """A walk on a line: a step to the left, none or one to the right, with noise; it pays to be near 1.

    It ends beyond `edge` and is cut after `limit` steps. It shows the place, the time as a share of the limit, and
    their product. A reward is NaN at step `spoiled` of an episode that has come far, and otherwise by `chance`.
    """

    def show(state: Any) -> Any:
        return jnp.stack([state["x"], state["time"] / limit, state["x"] * state["time"] / limit])

    def reset(key: Any) -> Any:
        state = {"x": 0.1 * jax.random.normal(key), "time": jnp.zeros((), jnp.int32)}
        return state, show(state)

    def step(key: Any, state: Any, action: Any) -> Transition:
        x = state["x"] + 0.3 * (action - 1) + 0.05 * jax.random.normal(key)
        after = {"x": x, "time": state["time"] + 1}
        reward = 1 - jnp.abs(x - 1)
        if chance:
            reward = jnp.where(jax.random.uniform(jax.random.fold_in(key, 1)) < chance, jnp.nan, reward)
        if spoiled is not None:
            reward = jnp.where((after["time"] == spoiled) & (x > 0.5), jnp.nan, reward)
        return Transition(after, show(after), reward, jnp.abs(x) > edge, after["time"] >= limit)

    return FunctionalEnvironment(reset, step, spaces.Box(-np.inf, np.inf, (3,), np.float32), spaces.Discrete(3))


def spoiled_walk() -> FunctionalEnvironment:
    """A walk that fails at the seventh step of an episode that has come far to the right."""
    return walk(spoiled=7)


def dot() -> FunctionalEnvironment:
    """A white dot in a black picture; it pays to say whether it is in the upper half. Episodes are cut after eight."""

    def show(place: Any) -> Any:
        return jnp.zeros((6, 6, 1), bool).at[place[0], place[1], 0].set(True)

    def reset(key: Any) -> Any:
        place = jax.random.randint(key, (2,), 0, 6)
        return (place, jnp.zeros((), jnp.int32)), show(place)

    def step(key: Any, state: Any, action: Any) -> Transition:
        (row, _), time = state
        place = jax.random.randint(key, (2,), 0, 6)
        reward = ((row < 3) == (action == 1)).astype(jnp.float32)
        return Transition((place, time + 1), show(place), reward, jnp.zeros((), bool), time + 1 >= 8)

    return FunctionalEnvironment(reset, step, spaces.Box(0, 1, (6, 6, 1), bool), spaces.Discrete(2))


def push() -> FunctionalEnvironment:
    """A point that is pushed by a bounded force in two dimensions; episodes are cut after ten steps."""

    def reset(key: Any) -> Any:
        place = jax.random.normal(key, (2,))
        return (place, jnp.zeros((), jnp.int32)), place

    def step(key: Any, state: Any, action: Any) -> Transition:
        place, time = state
        place = place + 0.1 * action
        after = (place, time + 1)
        return Transition(after, place, -jnp.sum(place**2), jnp.zeros((), bool), time + 1 >= 10)

    box = spaces.Box(np.array([-2, 0], np.float32), np.array([2, 5], np.float32))
    return FunctionalEnvironment(reset, step, spaces.Box(-np.inf, np.inf, (2,), np.float32), box)
