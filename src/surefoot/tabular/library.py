"""Finite MDPs by name: small ones whose answers are known, and families of any size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.sparse as sparse

from surefoot.errors import ModelError
from surefoot.tabular.model import MDP

Array = np.ndarray


def deterministic(successor: Any, reward: Any, discount: float, start: Any, horizon: int | None = None) -> MDP:
    """An MDP in which action a in state s leads to `successor[s][a]` and earns `reward[s][a]`."""
    successor = np.asarray(successor)
    return MDP(np.eye(len(successor))[successor], reward, discount, start, horizon)


def equality(discount: float = 0.9) -> MDP:
    """Two states in which several bounds are attained.

    Action 1 moves from 0 to 1 and earns 1; in 1 it costs 1. A policy that always takes 0 earns nothing; one
    that takes 1 with probability x changes the return by x (1-g-gx) / ((1-g)(1-g+gx)).
    """
    return deterministic([[0, 1], [1, 1]], [[0.0, 1.0], [0.0, -1.0]], discount, 0)


def bandit(rewards: Any = (1.0, -1.0, -1.0)) -> MDP:
    """One decision among len(`rewards`) arms: a horizon of 1."""
    return MDP(np.ones((1, len(rewards), 1)), [rewards], 1.0, 0, horizon=1)


def three_decisions() -> MDP:
    """Two states, two actions and a horizon of 3 without discount: small enough to follow by hand."""
    return deterministic([[0, 1], [1, 0]], [[1.0, 0.0], [3.0, 0.0]], 1.0, 0, horizon=3)


def dropped_discount() -> MDP:
    """Where leaving g^t out of the state weights flips the sign of the policy gradient.

    State 0 leads to 1 and 1 to the end (state 2) whatever is done; action 1 earns 1 in the first and -1.5
    in the second, g = .5. With one logit shared by both states the gradient is .25 - .5 * .375 = +.0625;
    without g^t it is -.125.
    """
    return deterministic([[1, 1], [2, 2], [2, 2]], [[0.0, 1.0], [0.0, -1.5], [0.0, 0.0]], 0.5, 0)


def chain(states: int = 10, slip: float = 0.1, discount: float = 0.95) -> MDP:
    """A corridor: action 0 steps left, 1 steps right, the other way with probability `slip`.

    The right end earns 1 a step, the left end 0.1 (leaving it is what a shortsighted policy never does).
    Starts at the left. Sparse.
    """
    _at_least("states", states, 2)
    state = np.arange(states)
    sides = np.stack([np.maximum(state - 1, 0), np.minimum(state + 1, states - 1)], axis=1)
    columns = np.stack([sides, sides[:, ::-1]], axis=-1).reshape(states * 2, 2)
    probability = np.broadcast_to([1 - slip, slip], columns.shape)
    reward = np.zeros((states, 2))
    reward[-1], reward[0] = 1.0, 0.1
    return MDP(_rows(columns, probability, states), reward, discount, 0)


def grid(width: int = 8, height: int | None = None, slip: float = 0.2, discount: float = 0.99) -> MDP:
    """A grid world: left, down, right, up; every step costs 1 until the far corner, which is the end.

    With probability `slip` the step goes to one of the two sides instead. Walls stop a step. Starts in the
    corner opposite to the end. Sparse.
    """
    height = width if height is None else height
    _at_least("width", width, 1)
    _at_least("height", height, 1)
    row, column = np.divmod(np.arange(width * height), width)
    moves = np.array([(0, -1), (1, 0), (0, 1), (-1, 0)])
    target = np.clip(row[:, None] + moves[:, 0], 0, height - 1) * width
    target += np.clip(column[:, None] + moves[:, 1], 0, width - 1)
    states = width * height
    successors = np.stack([target, np.roll(target, 1, axis=1), np.roll(target, -1, axis=1)], axis=-1)
    successors[-1] = states - 1
    probability = np.broadcast_to([1 - slip, slip / 2, slip / 2], (states * 4, 3))
    reward = np.full((states, 4), -1.0)
    reward[-1] = 0
    return MDP(_rows(successors.reshape(-1, 3), probability, states), reward, discount, 0)


def garnet(
    states: int = 8,
    actions: int = 3,
    branching: int = 3,
    discount: float = 0.9,
    seed: int = 0,
    *,
    dense: bool | None = None,
) -> MDP:
    """A random MDP (Archibald, McKinnon & Thomas 1995): each state and action has `branching` successors.

    Probabilities are the spacings of uniform numbers, rewards standard normal, the start is drawn from the
    flat Dirichlet law. Up to 1,000 states successors are distinct; beyond, where a repetition is rare, they
    are drawn independently. Dense up to 200 states unless `dense` says otherwise.
    """
    _at_least("states", states, 1)
    _at_least("actions", actions, 1)
    if not 1 <= branching <= states:
        raise ModelError(f"branching must be at least 1 and at most the {states} states, but {branching} came")
    rng = np.random.default_rng(seed)
    rows = states * actions
    if states <= 1000:
        columns = np.argsort(rng.random((rows, states)), axis=1)[:, :branching]
    else:
        columns = rng.integers(states, size=(rows, branching))
    cuts = np.sort(rng.random((rows, branching - 1)), axis=1)
    edges = np.concatenate([np.zeros((rows, 1)), cuts, np.ones((rows, 1))], axis=1)
    matrix: Any = _rows(columns, np.diff(edges, axis=1), states)
    if states <= 200 if dense is None else dense:
        matrix = matrix.toarray().reshape(states, actions, states)
    return MDP(matrix, rng.standard_normal((states, actions)), discount, rng.dirichlet(np.ones(states)))


def _rows(columns: Array, probability: Array, states: int) -> sparse.csr_array:
    """A sparse [S*A, S] matrix with the same number of successors in each row; repeated ones add up."""
    count, each = columns.shape
    ends = np.arange(0, count * each + 1, each)
    matrix = sparse.csr_array((probability.ravel(), columns.ravel(), ends), shape=(count, states))
    matrix.sum_duplicates()
    return matrix


def _at_least(name: str, value: int, limit: int) -> None:
    if value < limit:
        raise ModelError(f"{name} must be at least {limit}, but {value} came")


LIBRARY: dict[str, Callable[..., MDP]] = {
    "equality": equality,
    "bandit": bandit,
    "three-decisions": three_decisions,
    "dropped-discount": dropped_discount,
    "chain": chain,
    "grid": grid,
    "garnet": garnet,
}
"""Every MDP of the library by the name that the command line uses."""
