"""Finite MDPs from Gymnasium's toy-text environments, which carry their own table of transitions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sparse

from surefoot.errors import EnvironmentNotFound, ModelError, nearest
from surefoot.sources.environments import maker
from surefoot.tabular.files import read_mdp
from surefoot.tabular.library import LIBRARY
from surefoot.tabular.model import MDP

TOY_TEXT = ("FrozenLake-v1", "FrozenLake8x8-v1", "CliffWalking-v1", "Taxi-v4")
_DISCOUNT = 0.99


def load(name: str, *, discount: float | None = None, horizon: int | None = None) -> MDP:
    """The MDP called `name`: a .npz or .json file, one of the library, or a Gymnasium environment with a table.

    Arguments:
        discount: in place of the MDP's own; Gymnasium's environments state none and get .99.
        horizon: a finite number of decisions in place of the MDP's own.

    Raises ModelError, EnvironmentNotFound.
    """
    if Path(name).suffix in (".npz", ".json"):
        mdp = read_mdp(name)
    elif name in LIBRARY:
        mdp = LIBRARY[name]()
    else:
        return from_gymnasium(name, discount=_DISCOUNT if discount is None else discount, horizon=horizon)
    if discount is not None:
        mdp = mdp.with_discount(discount)
    return mdp if horizon is None else mdp.with_horizon(horizon)


def from_gymnasium(environment: Any, *, discount: float = _DISCOUNT, horizon: int | None = None) -> MDP:
    """The MDP of an environment's own table `P[state][action] = [(probability, next, reward, terminated), …]`.

    Transitions that terminate lead to an end: their next state becomes absorbing, without reward. Where
    such a state can also be reached without terminating, or is a start, one absorbing state is added
    behind the others instead. States keep their numbers. The environment's time limit is not part of the
    table; `horizon` sets one.

    Arguments:
        environment: a Gymnasium id, package.module:callable, a callable, or an environment.

    Raises EnvironmentNotFound, or ModelError for an environment without a table.
    """
    if hasattr(environment, "unwrapped"):
        return _from_table(environment, str(environment), discount, horizon)
    try:
        made = maker(environment)()
    except EnvironmentNotFound as error:
        names = nearest(str(environment), [*LIBRARY, *TOY_TEXT])
        hint = f"did you mean {' or '.join(map(repr, names))}?" if names else f"for example {TOY_TEXT[0]}"
        raise EnvironmentNotFound(
            f"{environment!r} is no Gymnasium environment, none of the library ({', '.join(LIBRARY)}), "
            f"and no .npz or .json file; {hint}"
        ) from error
    try:
        return _from_table(made, repr(environment), discount, horizon)
    finally:
        made.close()


def _from_table(environment: Any, name: str, discount: float, horizon: int | None) -> MDP:
    table = getattr(environment.unwrapped, "P", None)
    start = getattr(environment.unwrapped, "initial_state_distrib", None)
    if table is None or start is None:
        raise ModelError(
            f"environment {name} has no table of transitions (P and initial_state_distrib), so nothing can be "
            f"computed exactly; {', '.join(TOY_TEXT)} have one"
        )
    start = np.asarray(start, np.float64)
    states, actions = len(table), len(table[0])
    entries = [
        (s * actions + a, int(successor), float(probability), float(reward), bool(terminated))
        for s in range(states)
        for a in range(actions)
        for probability, successor, reward, terminated in table[s][a]
    ]
    row, successor, probability, reward, terminated = (np.array(column) for column in zip(*entries, strict=True))
    earned = np.zeros(states * actions)
    np.add.at(earned, row, probability * reward)
    ends = np.unique(successor[terminated])
    if _met_otherwise(ends, start, row // actions, successor, terminated, probability):
        states, ends, start = states + 1, np.array([states]), np.append(start, 0)
        earned = np.append(earned, np.zeros(actions))
        successor = np.where(terminated, states - 1, successor)
    inside = ~np.isin(row // actions, ends)
    absorbed = (ends[:, None] * actions + np.arange(actions)).ravel()
    earned[absorbed] = 0
    shape = (states * actions, states)
    matrix: Any = sparse.coo_array((probability[inside], (row[inside], successor[inside])), shape=shape)
    matrix += sparse.coo_array((np.ones(absorbed.size), (absorbed, absorbed // actions)), shape=shape)
    return MDP(sparse.csr_array(matrix), earned.reshape(states, actions), discount, start, horizon)


def _met_otherwise(ends: Any, start: Any, state: Any, successor: Any, terminated: Any, probability: Any) -> bool:
    """Whether an episode can be in one of `ends` without being over."""
    met = start > 0
    moves = ~terminated & (probability > 0)
    while True:
        wider = met.copy()
        wider[successor[moves & met[state]]] = True
        if (wider == met).all():
            return bool(met[ends].any())
        met = wider
