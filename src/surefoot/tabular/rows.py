"""The rows of a large finite MDP: some of its states, what is best in them, and one policy's transitions."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sparse
import scipy.sparse.csgraph
from jaxtyping import Float, Int

from surefoot.tabular.model import MDP

Array = np.ndarray


class Rows(NamedTuple):
    """The transitions and rewards of n of S states, under every action.

    Attributes:
        matrix: probabilities times g, row s*A + a: dense or CSR, [n*A, S].
        reward: [n, A].
        width: how many entries every row of a CSR matrix has, or 0 where that differs. Rows of one width are
            picked by copying blocks, several times faster than others.
    """

    matrix: Any
    reward: Float[Array, "n A"]
    width: int


class Followed(NamedTuple):
    """What follows from one action in each of n states: g P, [n, S], r, [n], and the actions, [n]."""

    step: Any
    reward: Float[Array, " n"]
    action: Int[Array, " n"]


def discounted_rows(mdp: MDP) -> Rows:
    """All states of a model. A dense matrix of mostly zeros becomes sparse, columns are of 32 bits if they can."""
    matrix = mdp.matrix
    if not sparse.issparse(matrix):
        if 4 * np.count_nonzero(matrix) > matrix.size:
            return Rows(mdp.discount * matrix, mdp.reward, 0)
        matrix = sparse.csr_array(matrix)
    counts = np.diff(matrix.indptr)
    width = int(counts.max())
    if 2 * width * len(counts) > 3 * matrix.nnz:
        return Rows(mdp.discount * matrix, mdp.reward, 0)
    # Short rows are filled up with zeros in the column of their first entry, which adds no neighbour.
    short = np.flatnonzero(counts < width)
    lacking = width - counts[short]
    at, first = np.repeat(matrix.indptr[short + 1], lacking), np.repeat(matrix.indices[matrix.indptr[short]], lacking)
    columns = matrix.indices.astype(np.int32 if width * len(counts) < 2**31 else np.int64)
    data, columns = np.insert(mdp.discount * matrix.data, at, 0.0), np.insert(columns, at, first)
    return Rows(_uniform(data.reshape(-1, width), columns.reshape(-1, width), mdp.states), mdp.reward, width)


def _uniform(data: Float[Array, "n w"], columns: Int[Array, "n w"], states: int) -> sparse.csr_array:
    ends = np.arange(0, data.size + 1, data.shape[1], dtype=columns.dtype)
    return sparse.csr_array((data.ravel(), columns.ravel(), ends), shape=(len(data), states))


def _blocks(matrix: sparse.csr_array, width: int) -> tuple[Float[Array, "n w"], Int[Array, "n w"]]:
    return matrix.data.reshape(-1, width), matrix.indices.reshape(-1, width)


def _picked(rows: Rows, picked: Int[Array, " n"]) -> Any:
    if not rows.width:
        return rows.matrix[picked]
    data, columns = (block.take(picked, axis=0) for block in _blocks(rows.matrix, rows.width))
    return _uniform(data, columns, rows.matrix.shape[1])


def part_of(rows: Rows, begin: int, end: int) -> Rows:
    """The states from `begin` to `end`, of a CSR matrix, not copied."""
    matrix, actions = rows.matrix, rows.reward.shape[1]
    ends = matrix.indptr[begin * actions : end * actions + 1]
    inside = slice(ends[0], ends[-1])
    arrays = matrix.data[inside], matrix.indices[inside], ends - ends[0]
    part = sparse.csr_array(arrays, shape=(len(ends) - 1, matrix.shape[1]))
    return Rows(part, rows.reward[begin:end], rows.width)


def reordered(rows: Rows, order: Int[Array, " S"]) -> Rows:
    """All states, as rows and as columns, in another order."""
    states, actions = rows.reward.shape
    rank = np.empty(states, rows.matrix.indices.dtype)
    rank[order] = np.arange(states)
    matrix = _picked(rows, (order[:, None] * actions + np.arange(actions)).ravel())
    matrix.indices = rank[matrix.indices]
    return Rows(matrix, rows.reward[order], rows.width)


def _largest(action_value: Float[Array, "n A"]) -> Float[Array, " n"]:
    """The largest of each row."""
    # NumPy compares columns ten times faster than it reduces a short last axis.
    return action_value.max(axis=1) if action_value.shape[1] > 16 else functools.reduce(np.maximum, action_value.T)


def improve(
    rows: Rows, value: Float[Array, " S"], kept: Int[Array, " n"], tie: float
) -> tuple[Float[Array, " n"], Int[Array, " n"]]:
    """T V and its action: the one kept while no other is better by more than `tie`."""
    states, actions = rows.reward.shape
    action_value = (rows.matrix @ value).reshape(states, actions)
    action_value += rows.reward
    best = _largest(action_value)
    better = np.flatnonzero(best > action_value.ravel()[np.arange(states) * actions + kept] + tie)
    action = kept.copy()
    action[better] = action_value[better].argmax(axis=1)
    return best, action


def follow(rows: Rows, action: Int[Array, " n"], last: Followed | None = None) -> Followed:
    """What follows from these actions. `last`, what followed from others, may be written over."""
    states, actions = rows.reward.shape
    changed = np.arange(states) if last is None else np.flatnonzero(action != last.action)
    if last is None or not rows.width or 4 * len(changed) > states:
        picked = np.arange(states) * actions + action
        return Followed(_picked(rows, picked), rows.reward.ravel()[picked], action)
    picked = changed * actions + action[changed]
    last.reward[changed] = rows.reward.ravel()[picked]
    for block, source in zip(_blocks(last.step, rows.width), _blocks(rows.matrix, rows.width), strict=True):
        block[changed] = source[picked]
    return last._replace(action=action)


def lower_bound(rows: Rows, discount: float) -> float:
    """The largest constant V <= T V: no state of the best policy earns less for ever."""
    return float(_largest(rows.reward).min()) / (1 - discount)


def bound_by_staying(rows: Rows, discount: float) -> Float[Array, " S"]:
    """A higher V <= T V: what one action earns until it first leads elsewhere, and from then on `lower_bound`."""
    (states, actions), matrix, floor = rows.reward.shape, rows.matrix, lower_bound(rows, discount)
    state = np.repeat(np.arange(states, dtype=matrix.indices.dtype), np.diff(matrix.indptr[::actions]))
    own = np.flatnonzero(matrix.indices == state)
    row = np.searchsorted(matrix.indptr, own, side="right") - 1
    stay = np.bincount(row, matrix.data[own], minlength=states * actions).reshape(states, actions)
    return _largest((rows.reward + (discount - stay) * floor) / (1 - stay))


def distances(rows: Rows, source: Array, beyond: int) -> tuple[Int[Array, " S"], Int[Array, " S"]]:
    """States by the fewest steps in which actions can lead to a source, and those steps, in this order.

    Those that cannot get there come last, `beyond` steps further than any other.
    """
    (states, actions), matrix = rows.reward.shape, rows.matrix
    arrays = np.ones(matrix.nnz), matrix.indices, matrix.indptr[::actions]
    back = sparse.csr_array(arrays, shape=(states, states)).T.tocsr()
    # One more state, before all sources, so that one search starts from all of them.
    columns = np.concatenate([back.indices, np.flatnonzero(source).astype(back.indices.dtype)])
    arrays = np.ones(len(columns)), columns, np.append(back.indptr, back.indptr.dtype.type(len(columns)))
    graph = sparse.csr_array(arrays, shape=(states + 1, states + 1))
    met, parent = scipy.sparse.csgraph.breadth_first_order(graph, states)
    place = np.full(states + 1, -1)
    place[met] = np.arange(len(met))
    # By doubling: add the distance of the ancestor found so far, then look at the ancestor's ancestor.
    ancestor, distance = np.append(0, place[parent[met[1:]]]), np.minimum(np.arange(states + 1), 1)
    while ancestor.any():
        distance[: len(met)] += distance[ancestor]
        ancestor = ancestor[ancestor]
    distance[len(met) :] = distance[len(met) - 1] + beyond
    return np.concatenate([met[1:], np.flatnonzero(place[:states] < 0)]), distance[1:]
