"""The best policy of a finite MDP, by repeated greedy improvement."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sparse
from jaxtyping import Float, Int

from surefoot.errors import SettingError, shown
from surefoot.tabular.evaluation import resolvent
from surefoot.tabular.model import MDP
from surefoot.tabular.rows import (
    Followed,
    Rows,
    bound_by_staying,
    discounted_rows,
    distances,
    follow,
    improve,
    lower_bound,
    part_of,
    reordered,
)

Array = np.ndarray

_ROUNDING = 16 * np.finfo(np.float64).eps
# Sweeps are too slow if each leaves more than this share of the error, which is judged after so many.
_SLOW, _PATIENCE = 0.95, 12
# A window spans so many steps, or so many states where that is more, of which the last steps are its margin.
_STEPS, _MARGIN, _STATES = 40, 10, 2000
# In a window: sweeps after each improvement, improvements at most, and steps to be solved before it moves on.
_SWEEPS, _VISITS, _STRIDE = 10, 64, 8
# With fewer transitions a thread costs more than it saves.
_TRANSITIONS_A_THREAD = 2**20


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
    first sweep, backwards in time, is already the best. Raises SettingError for a limit below 1.
    """
    if _settled(mdp, 0.0, limit):
        return _backwards(mdp)

    def evaluated(action: Array, improved: Array) -> Array:
        solve, _ = resolvent(mdp.matrix[np.arange(mdp.states) * mdp.actions + action], mdp.discount)
        return solve(mdp.reward[np.arange(mdp.states), action])

    return _iterate(mdp, evaluated, tolerance=0.0, limit=limit)


def value_iteration(mdp: MDP, *, tolerance: float = 1e-8, limit: int = 1_000_000) -> Optimum:
    """Value iteration (Bellman 1957): V <- T V until max |T V - V| <= tolerance, in reward units.

    Raises SettingError for a negative tolerance or a limit below 1.
    """
    if _settled(mdp, tolerance, limit):
        return _backwards(mdp)
    return _iterate(mdp, lambda action, improved: improved, tolerance=tolerance, limit=limit)


def modified_policy_iteration(mdp: MDP, *, tolerance: float = 1e-8, limit: int = 10_000) -> Optimum:
    """Modified policy iteration (Puterman & Shin 1978), for large models, until max |T V - V| <= tolerance.

    Between greedy improvements the policy is evaluated by sweeps, no more exactly than the last improvement
    deserves (the second forcing term of Eisenstat & Walker 1996; Gargiani et al. 2022 on inexact policy
    iteration). V rises from a lower bound and stays one, so each improvement brings it nearer to the best by the
    factor g at least, and two ways of being much quicker are safe:

    - After its sweeps V is raised by the largest constant that keeps it a lower bound (Puterman 1994, 6.6.12):
      all that a chain which mixes needs.
    - Where sweeps are slow because rewards are many steps away, states are ordered by their distance to where a
      lower bound is highest, ties between actions go to the one that leads nearer, and a window moves over the
      states as they are solved (after the partitions of Wingate & Seppi 2005). Sparse models only, and only as
      long as it does more than sweeps.

    Arguments:
        mdp: the model; with a horizon it is solved by dynamic programming.
        tolerance: of the residual, in reward units. V is then within tolerance / (1 - g) of the best.
        limit: the most improvements over all states; each is a Sweep.

    The residual is that of the value returned. `converged` is False where the limit came first, or rounding,
    about 4e-15 max|r| / (1-g), is above the tolerance. Models of millions of transitions use all cores. Raises
    SettingError for a negative tolerance or a limit below 1.
    """
    if _settled(mdp, tolerance, limit):
        return _backwards(mdp)
    largest_value, ahead = float(np.max(np.abs(mdp.reward))) / (1 - mdp.discount), mdp.discount / (1 - mdp.discount)
    goal, tie = max(tolerance, _ROUNDING * largest_value), _ROUNDING * largest_value / 4
    rows, order = discounted_rows(mdp), np.arange(mdp.states)
    value, action = np.full(mdp.states, lower_bound(rows, mdp.discount)), np.zeros(mdp.states, np.int64)
    parts, cuts = _parts(rows)
    followed: list[Any] = [None] * len(parts)
    ordered, moving, turns = False, False, 0
    distance, spread, residual = np.empty(0, np.int64), 0.0, np.inf
    sweeps: list[Sweep] = []
    with ThreadPoolExecutor(len(parts)) as pool:
        run = pool.map if len(parts) > 1 else map
        while True:
            found = run(improve, parts, itertools.repeat(value), np.split(action, cuts), itertools.repeat(tie))
            improved, greedy = (_joined(each) for each in zip(*found, strict=True))
            gain = improved - value
            low, last_residual, last_spread, spread = float(gain.min()), residual, spread, float(np.ptp(gain))
            changed, residual = np.count_nonzero(greedy != action) if sweeps else mdp.states, max(low + spread, -low)
            sweeps.append(Sweep(int(changed), residual, float(np.sum(mdp.start[order] * value))))
            action = greedy
            # Written so that what is not a number ends it too.
            if not residual > goal or len(sweeps) >= limit:
                break
            # A pass that does little is tried from the other side, whence the rest may come; then sweeps go on.
            turns = turns + 1 if moving and residual > 0.1 * last_residual else 0
            moving = moving and turns < 2
            if moving:
                value = improved + max(low, 0.0) * ahead
                if turns:
                    back = np.arange(mdp.states)[::-1]
                    rows, order, distance = reordered(rows, back), order[back], distance[-1] - distance[back]
                    value, action, (parts, cuts) = value[back], action[back], _parts(rows)
                _solve_in_passing(rows, distance, value, action, goal / 4, tie)
                continue
            forcing = min(0.5, 0.9 * (spread / last_spread) ** 2) if last_spread else 0.5
            followed = list(run(follow, parts, np.split(action, cuts), followed))
            patience = _PATIENCE if not ordered else 5 * _PATIENCE
            value, low, slow = _swept(run, followed, improved, gain, max(forcing * spread, goal / 4), patience)
            value = value + max(low, 0.0) * ahead
            if slow and not ordered and sparse.issparse(rows.matrix):
                least = bound_by_staying(rows, mdp.discount)
                order, distance = distances(rows, least == least.max(), _STEPS)
                rows, value = reordered(rows, order), np.maximum(value, least)[order]
                action = (rows.matrix @ distance.astype(np.float64)).reshape(rows.reward.shape).argmin(axis=1)
                (parts, cuts), followed, residual = _parts(rows), [None] * len(parts), np.inf
                # A window that holds most states has nowhere to move.
                ordered, moving = True, np.bincount(distance // _STEPS).max() < mdp.states / 2
    by_state, best = np.empty(mdp.states), np.empty(mdp.states, np.int64)
    by_state[order], best[order] = value, action
    return Optimum(best, by_state, sweeps[-1].expected_return, residual, residual <= tolerance, tuple(sweeps))


def _parts(rows: Rows) -> tuple[list[Rows], Int[Array, " parts-1"]]:
    """One for each thread, and where they are cut: products and arithmetic let other threads run."""
    threads = min(os.cpu_count() or 1, rows.matrix.nnz // _TRANSITIONS_A_THREAD) if sparse.issparse(rows.matrix) else 1
    cuts = np.linspace(0, len(rows.reward), max(threads, 1) + 1).astype(int)
    return [part_of(rows, *cut) for cut in itertools.pairwise(cuts)] if threads > 1 else [rows], cuts[1:-1]


def _joined(arrays: Sequence[Array]) -> Array:
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


def _one_sweep(followed: Followed, value: Float[Array, " S"]) -> Float[Array, " n"]:
    after = followed.step @ value
    after += followed.reward
    return after


def _swept(
    run: Any, followed: list[Followed], value: Array, change: Array, goal: float, patience: int
) -> tuple[Float[Array, " S"], float, bool]:
    """Sweeps until the span of a change is `goal`, or that is slow: the value, the least of the change, whether slow.

    `change` is the one that led to `value`, `patience` how many sweeps at least it takes to be called slow.
    """
    low, first = float(change.min()), float(np.ptp(change))
    span, done, more, rate = first, 0, 2, 0.0
    while span > goal and (done < patience or rate < _SLOW):
        for _ in range(more):
            before, value = value, _joined(list(run(_one_sweep, followed, itertools.repeat(value))))
        change = value - before
        low, span, done = float(change.min()), float(np.ptp(change)), done + more
        rate = (span / first) ** (1 / done)
        # As many more as this rate asks for.
        more = int(np.clip(np.log(goal / span) / np.log(rate) + 1, 1, 10)) if 0 < rate < 1 else 10
    return value, low, rate > _SLOW


def _solve_in_passing(
    rows: Rows, distance: Int[Array, " S"], value: Float[Array, " S"], action: Int[Array, " S"], goal: float, tie: float
) -> None:
    """Bring the residual to `goal` in one pass over states sorted by distance; changes value and action."""
    states, begin = len(distance), 0
    while begin < states:
        far = max(distance[begin] + _STEPS, distance[min(begin + _STATES, states) - 1] + 1)
        margin, end = (int(place) for place in np.searchsorted(distance, [far - _MARGIN, far]))
        margin = states if end == states else margin
        part, inside, kept, followed = part_of(rows, begin, end), value[begin:end], action[begin:end], None
        for _ in range(_VISITS):
            improved, greedy = improve(part, value, kept, tie)
            unsolved = np.flatnonzero(improved - inside > goal)
            inside[:], kept[:] = improved, greedy
            if not len(unsolved):
                first = margin
                break
            followed = follow(part, greedy, followed)
            for _ in range(_SWEEPS):
                np.add(followed.step @ value, followed.reward, out=inside)
            first = begin + int(unsolved[0])
            if first >= margin or distance[first] >= distance[begin] + _STRIDE:
                break
        else:
            first = margin
        # Never past the margin: what is there was solved for neighbours that nothing had reached.
        begin = min(first, margin)


def _iterate(mdp: MDP, evaluated: Callable[[Array, Array], Array], *, tolerance: float, limit: int) -> Optimum:
    """Improve greedily and evaluate in turn. `evaluated(action, T V)` is the next V."""
    states, tie = np.arange(mdp.states), 1e-12 * mdp.scale
    value, action = np.zeros(mdp.states), np.zeros(mdp.states, np.int64)
    sweeps: list[Sweep] = []
    while True:
        action_value = mdp.reward + mdp.discount * mdp.expected_next(value)
        improved = action_value.max(axis=1)
        kept = action_value[states, action] >= improved - tie if sweeps else np.zeros(mdp.states, bool)
        action = np.where(kept, action, action_value.argmax(axis=1))
        changed, residual = mdp.states - int(np.sum(kept)), float(np.max(np.abs(improved - value)))
        sweeps.append(Sweep(changed, residual, float(mdp.start @ value)))
        converged = residual <= tolerance or (changed == 0 and tolerance == 0)
        if converged or len(sweeps) >= limit:
            return Optimum(action, value, sweeps[-1].expected_return, residual, converged, tuple(sweeps))
        value = evaluated(action, improved)


def _settled(mdp: MDP, tolerance: float, limit: int) -> bool:
    """Whether one pass backwards in time is all there is to do, for settings that are legal."""
    if not tolerance >= 0:
        raise SettingError(f"tolerance must be a number, at least 0, but {shown(tolerance)} came")
    if limit < 1:
        raise SettingError(f"limit must be at least 1, but {shown(limit)} came")
    return mdp.horizon is not None


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
