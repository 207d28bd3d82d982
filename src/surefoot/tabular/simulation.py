"""Drawing from a finite MDP: what a sampled run would see, for comparing samples with the exact answer."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import scipy.sparse as sparse
from jaxtyping import Float, Int

from surefoot.batch import Batch, sampled_batch
from surefoot.errors import ModelError
from surefoot.tabular.evaluation import evaluate
from surefoot.tabular.model import MDP, PolicyLike
from surefoot.tabular.update import tabular_policy

Array = np.ndarray


def sample_batch(mdp: MDP, policy: PolicyLike, count: int, rng: np.random.Generator) -> Batch:
    """`count` transitions of `policy` as a Batch: states from d, actions from pi, exact advantages, equal weights.

    Each state is where an own episode stands that at every step goes on with probability g: its law is the
    discounted visitation d, so the batch estimates what `exact_batch` enumerates. For MDPs without horizon.
    """
    state = visited_states(mdp, policy, count, rng)
    account = evaluate(mdp, policy)
    action: Any = _draw(account.probabilities[state], rng)
    table = tabular_policy(policy)
    with jax.enable_x64(True):
        old, weight = table(state), jax.numpy.ones(count)
        return sampled_batch(state, None, action, jax.numpy.asarray(account.advantage)[state, action], old, weight)


def visited_states(mdp: MDP, policy: PolicyLike, count: int, rng: np.random.Generator) -> Int[Array, " count"]:
    """`count` independent draws from the discounted visitation d of `policy`."""
    if mdp.horizon is not None:
        raise ModelError(f"mdp must have no horizon to sample its discounted visitation, but {mdp.horizon} came")
    probabilities = mdp.probabilities(policy)
    cumulative = _cumulative(mdp.under(probabilities))
    state = rng.choice(mdp.states, size=count, p=mdp.start)
    going = np.flatnonzero(rng.random(count) < mdp.discount)
    while going.size:
        state[going] = _next(cumulative, state[going], rng)
        going = going[rng.random(going.size) < mdp.discount]
    return state


def _cumulative(step: Any) -> sparse.csr_array:
    """The rows' cumulative probabilities, each row 1 above the one before: one sorted array to search."""
    rows = sparse.csr_array(step)
    rows.eliminate_zeros()
    total = np.cumsum(rows.data)
    before = np.concatenate([[0.0], total])[rows.indptr[:-1]]
    counts = np.diff(rows.indptr)
    rows.data = total - np.repeat(before, counts)
    rows.data[rows.indptr[1:] - 1] = 1.0
    rows.data += np.repeat(np.arange(len(counts)), counts)
    return rows


def _next(cumulative: sparse.csr_array, state: Int[Array, " n"], rng: np.random.Generator) -> Int[Array, " n"]:
    place = np.searchsorted(cumulative.data, state + rng.random(state.size), side="right")
    # state + u may round up to the row's end.
    return cumulative.indices[np.minimum(place, cumulative.indptr[state + 1] - 1)]


def _draw(probabilities: Float[Array, "n A"], rng: np.random.Generator) -> Int[Array, " n"]:
    cumulative = np.cumsum(probabilities, axis=1)
    drawn = np.sum(rng.random((len(cumulative), 1)) * cumulative[:, -1:] >= cumulative, axis=1)
    return np.minimum(drawn, probabilities.shape[1] - 1)
