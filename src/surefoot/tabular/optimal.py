"""The best policy of a finite MDP, by repeated greedy improvement."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import numpy as np
import scipy.sparse as sparse
from jaxtyping import Float, Int

from surefoot.errors import SettingError
from surefoot.tabular.evaluation import resolvent
from surefoot.tabular.model import MDP

Array = np.ndarray


class Sweep(NamedTuple):
    """One greedy improvement.

    Attributes:
        changed: in how many states (and times) the greedy action is another one than before.
        residual: max over states of |T V - V| for the V that was improved upon: how far V is from solving
            the Bellman optimality equation, in reward units. V is then within residual / (1 - g) of the best.
        expected_return: <start, V>.
    """

    changed: int
    residual: float
    expected_return: float


class Optimum(NamedTuple):
    """The end of an iteration over policies or values.

    Attributes:
        action: the greedy action, [S] or [T, S].
        value: V, [S] or [T, S].
        expected_return: <start, V>.
        residual: of the last sweep, in reward units.
        converged: whether no action could be improved upon, or the residual reached the tolerance.
        sweeps: one entry for each greedy improvement.
    """

    action: Int[Array, "... S"]
    value: Float[Array, "... S"]
    expected_return: float
    residual: float
    converged: bool
    sweeps: tuple[Sweep, ...]

    def probabilities(self, actions: int) -> Float[Array, "... S A"]:
        """The greedy policy as probabilities over `actions` actions."""
        return np.eye(actions)[self.action]


def policy_iteration(mdp: MDP, *, limit: int = 1000) -> Optimum:
    """Policy iteration (Howard 1960): evaluate exactly, act greedily, until no action is improved upon.

    An action is kept while no other is better by more than rounding, so ties end it. With a horizon the
    first sweep, backwards in time, is already the best.
    """
    if mdp.horizon is not None:
        return _backwards(mdp)

    def evaluated(action: Array, improved: Array, residual: float) -> Array:
        solve, _ = resolvent(_step_of(mdp, action), mdp.discount)
        return solve(mdp.reward[np.arange(mdp.states), action])

    return _iterate(mdp, evaluated, tolerance=0.0, limit=limit)


def value_iteration(mdp: MDP, *, tolerance: float = 1e-8, limit: int = 1_000_000) -> Optimum:
    """Value iteration (Bellman 1957): V <- T V until max |T V - V| <= tolerance, in reward units."""
    if mdp.horizon is not None:
        return _backwards(mdp)
    return _iterate(mdp, lambda action, improved, residual: improved, tolerance=tolerance, limit=limit)


def _iterate(mdp: MDP, evaluated: Callable[[Array, Array, float], Array], *, tolerance: float, limit: int) -> Optimum:
    """Improve greedily and evaluate in turn. `evaluated(action, T V, residual)` is the next V."""
    states = np.arange(mdp.states)
    tie = 1e-12 * mdp.scale
    value = np.zeros(mdp.states)
    action = None
    sweeps: list[Sweep] = []
    converged = False
    while not converged and len(sweeps) < limit:
        action_value = mdp.reward + mdp.discount * mdp.expected_next(value)
        improved = action_value.max(axis=1)
        greedy = action_value.argmax(axis=1)
        if action is not None:
            greedy = np.where(action_value[states, action] >= improved - tie, action, greedy)
        changed = mdp.states if action is None else int(np.sum(greedy != action))
        action = greedy
        residual = float(np.max(np.abs(improved - value)))
        sweeps.append(Sweep(changed, residual, float(mdp.start @ value)))
        converged = residual <= tolerance or (changed == 0 and tolerance == 0)
        if not converged:
            value = evaluated(action, improved, residual)
    return Optimum(action, value, float(mdp.start @ value), sweeps[-1].residual, converged, tuple(sweeps))


def _step_of(mdp: MDP, action: Int[Array, " S"]) -> Any:
    """P of the policy that takes these actions, [S, S]."""
    return mdp.matrix[np.arange(mdp.states) * mdp.actions + action]


def _backwards(mdp: MDP) -> Optimum:
    """Dynamic programming from the last decision to the first."""
    assert mdp.horizon is not None
    shape = (mdp.horizon, mdp.states)
    action, value = np.empty(shape, np.int64), np.empty(shape)
    later = np.zeros(mdp.states)
    for t in reversed(range(mdp.horizon)):
        action_value = mdp.reward + mdp.discount * mdp.expected_next(later)
        action[t] = action_value.argmax(axis=1)
        value[t] = later = action_value.max(axis=1)
    expected_return = float(mdp.start @ value[0])
    return Optimum(action, value, expected_return, 0.0, True, (Sweep(action.size, 0.0, expected_return),))
