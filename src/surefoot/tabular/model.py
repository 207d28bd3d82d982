"""The finite MDP, and what counts as a policy for it."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import scipy.sparse as sparse
from jaxtyping import Float

from surefoot.errors import ModelError, shown
from surefoot.policy import TabularPolicy

if TYPE_CHECKING:
    from surefoot.batch import Batch
    from surefoot.tabular.evaluation import Evaluation
    from surefoot.tabular.optimal import Optimum

Array = np.ndarray
PolicyLike: TypeAlias = "TabularPolicy | Float[Array, 'S A'] | Float[Array, 'T S A']"

_ROUNDING = 1e-6
_MOST = 2**28  # numbers of a policy [T, S, A]: two gigabytes, of which an evaluation takes several


class MDP:
    """A finite Markov decision process whose every quantity can be computed.

    Immutable. Rewards are kept as r(s, a), their expectation over successors, which is all that values,
    advantages and bounds depend on. An end is an absorbing state of reward 0. Probabilities that sum to 1
    but for rounding (1e-6) are scaled to sum to 1.

    Attributes:
        states: how many states, S.
        actions: how many actions, A.
        matrix: transition probabilities, row s*A + a: dense or scipy CSR, [S*A, S].
        reward: r(s, a), [S, A].
        discount: in [0, 1); up to 1 with a horizon.
        start: law of the first state, [S].
        horizon: how many decisions, T, or None for infinitely many.
    """

    def __init__(self, transition: Any, reward: Any, discount: float, start: Any, horizon: int | None = None):
        """See the class.

        Arguments:
            transition: [S, A, S], or a scipy sparse matrix [S*A, S] whose row s*A + a is (s, a).
            reward: [S, A], or [S, A, S] by successor (sparse [S*A, S] is allowed too).
            discount: factor by which each later reward is weighted.
            start: [S], or one state.
            horizon: a whole number of decisions, after which nothing is earned.

        Raises ModelError, naming state and action, for anything that is no MDP.
        """
        self.matrix, self.states, self.actions = _checked_transition(transition, reward)
        self.reward = _checked_reward(reward, self.matrix, self.states, self.actions)
        self.horizon = _checked_horizon(horizon)
        if (self.horizon or 0) * self.states * self.actions > _MOST:
            raise ModelError(
                f"horizon must be at most {_MOST // (self.states * self.actions)} for {self.states} states and "
                f"{self.actions} actions, but {self.horizon} came; a policy would have more than {_MOST} numbers"
            )
        self.discount = _checked_discount(discount, self.horizon)
        self.start = _checked_start(start, self.states)

    def __repr__(self) -> str:
        horizon = "" if self.horizon is None else f", horizon={self.horizon}"
        kind = "sparse" if sparse.issparse(self.matrix) else "dense"
        return f"MDP({self.states} states, {self.actions} actions, discount={self.discount:g}{horizon}, {kind})"

    @property
    def effective_horizon(self) -> float:
        """Sum of g^t over the decisions: 1/(1-g), or that of the first T powers. What turns a gain a step
        into one of the return."""
        if self.horizon is None:
            return 1 / (1 - self.discount)
        return float(np.sum(self.discount ** np.arange(self.horizon)))

    @cached_property
    def scale(self) -> float:
        """max(1, max|r| times the effective horizon): what tolerances are relative to."""
        return max(1.0, float(np.max(np.abs(self.reward))) * self.effective_horizon)

    @property
    def transition(self) -> Any:
        """Transition probabilities [S, A, S], or `matrix` itself where that is sparse."""
        if sparse.issparse(self.matrix):
            return self.matrix
        return self.matrix.reshape(self.states, self.actions, self.states)

    def expected_next(self, value: Float[Array, " S"]) -> Float[Array, "S A"]:
        """(P f)(s, a), the expectation of `value` over the successors of each state and action."""
        return (self.matrix @ value).reshape(self.states, self.actions)

    def under(self, probabilities: Float[Array, "S A"]) -> Any:
        """sum_a pi(a|s) P(.|s,a), [S, S], of the kind (dense or CSR) of `matrix`.

        `probabilities` need not sum to 1, so that it also serves the overlap of two policies.
        """
        if not sparse.issparse(self.matrix):
            return np.einsum("sa,sat->st", probabilities, self.transition)
        taken = np.asarray(probabilities) > 0
        ends = np.concatenate([[0], np.cumsum(taken.sum(axis=1))])
        choice = sparse.csr_array((probabilities[taken], np.flatnonzero(taken), ends), shape=(self.states, taken.size))
        return choice @ self.matrix

    def with_discount(self, discount: float) -> MDP:
        """The same model with another discount factor."""
        return MDP(self.transition, self.reward, discount, self.start, self.horizon)

    def with_horizon(self, horizon: int | None) -> MDP:
        """The same model with another horizon."""
        return MDP(self.transition, self.reward, self.discount, self.start, horizon)

    @property
    def policy_shape(self) -> tuple[int, ...]:
        """Of a policy's probabilities: [S, A], or [T, S, A] with a horizon."""
        stationary = (self.states, self.actions)
        return stationary if self.horizon is None else (self.horizon, *stationary)

    def probabilities(self, policy: PolicyLike, name: str = "policy") -> Float[Array, "... S A"]:
        """The action probabilities of `policy` in the shape `policy_shape`, checked.

        With a horizon, a policy [S, A] is used at every time. Raises ModelError, naming state and action.
        """
        if isinstance(policy, TabularPolicy):
            return _checked_policy(policy.probabilities().reshape(self.policy_shape), self, name)
        return _checked_policy(policy, self, name)

    def uniform(self) -> Float[Array, "... S A"]:
        """The policy that takes every action equally often."""
        return np.full(self.policy_shape, 1 / self.actions)

    def evaluate(self, policy: PolicyLike) -> Evaluation:
        """Values, advantages, return and visitation, to rounding. See `surefoot.tabular.evaluate`."""
        from surefoot.tabular.evaluation import evaluate

        return evaluate(self, policy)

    def exact_batch(self, policy: TabularPolicy) -> Batch:
        """Every state and action as a Batch that the rules take. See `surefoot.tabular.exact_batch`."""
        from surefoot.tabular.update import exact_batch

        return exact_batch(self, policy)

    def policy_iteration(self, **options: Any) -> Optimum:
        """The best policy and its value. See `surefoot.tabular.policy_iteration`."""
        from surefoot.tabular.optimal import policy_iteration

        return policy_iteration(self, **options)


def _number_array(value: Any, name: str) -> Array:
    try:
        kind = np.asarray(value).dtype.kind
        if kind in "cmMV":  # NumPy would drop an imaginary part, and count a date's days
            raise TypeError
        return np.asarray(value, np.float64)
    except (TypeError, ValueError, OverflowError):
        raise ModelError(f"{name} must be an array of numbers, but {type(value).__name__} came") from None


def _checked_transition(transition: Any, reward: Any) -> tuple[Any, int, int]:
    if sparse.issparse(transition):
        matrix = sparse.csr_array(transition, dtype=np.float64)
        rows, states = matrix.shape
        if states == 0 or rows == 0 or rows % states:
            raise ModelError(
                f"transition as a sparse matrix must be [S*A, S], but {list(matrix.shape)} came; row s*A + a is (s, a)"
            )
        actions = rows // states
        values, row_of = matrix.data, np.repeat(np.arange(rows), np.diff(matrix.indptr))
    else:
        dense = _number_array(transition, "transition")
        if dense.ndim != 3 or dense.shape[0] != dense.shape[2] or dense.size == 0:
            raise ModelError(f"transition must be [S, A, S], but {list(dense.shape)} came")
        states, actions = dense.shape[:2]
        matrix = dense.reshape(states * actions, states)
        values, row_of = matrix.ravel(), np.repeat(np.arange(states * actions), states)
    bad = ~(np.isfinite(values) & (values >= 0))
    if bad.any():
        first = int(np.argmax(bad))
        where = _where(int(row_of[first]), actions)
        raise ModelError(f"transition {where} has the probability {values[first]:g}; probabilities must be at least 0")
    total = np.asarray(matrix.sum(axis=1)).ravel()
    off = np.abs(total - 1) > _ROUNDING
    if off.any():
        row = int(np.argmax(off))
        raise ModelError(f"transition {_where(row, actions)} sums to {total[row]:.9g}; every row must sum to 1")
    if sparse.issparse(matrix):
        matrix = sparse.csr_array((matrix.data / total[row_of], matrix.indices, matrix.indptr), shape=matrix.shape)
        matrix.sum_duplicates()
    else:
        matrix = matrix / total[:, None]
    return matrix, states, actions


def _where(row: int, actions: int) -> str:
    return f"from state {row // actions} with action {row % actions}"


def _checked_reward(reward: Any, matrix: Any, states: int, actions: int) -> Float[Array, "S A"]:
    if sparse.issparse(reward):
        if reward.shape != matrix.shape:
            raise ModelError(f"reward as a sparse matrix must be {list(matrix.shape)}, but {list(reward.shape)} came")
        expected = np.asarray((sparse.csr_array(reward) * matrix).sum(axis=1)).reshape(states, actions)
    else:
        array = _number_array(reward, "reward")
        if array.shape == (states, actions):
            expected = array.copy()
        elif array.shape == (states, actions, states):
            by_row = array.reshape(states * actions, states)
            # What a transition of probability 0 would earn does not matter, even if it is not finite.
            by_row = np.where(_positive(matrix), by_row, 0)
            expected = np.asarray((matrix * by_row).sum(axis=1)).reshape(states, actions)
        else:
            raise ModelError(
                f"reward must be {[states, actions]} or {[states, actions, states]} to fit transition, "
                f"but {list(array.shape)} came"
            )
    bad = ~np.isfinite(expected)
    if bad.any():
        row = int(np.argmax(bad))
        raise ModelError(f"reward {_where(row, actions)} is {expected.ravel()[row]:g}; rewards must be finite")
    return expected


def _positive(matrix: Any) -> Array:
    return (matrix.toarray() if sparse.issparse(matrix) else matrix) > 0


def _checked_horizon(horizon: Any) -> int | None:
    if horizon is None:
        return None
    value = np.asarray(horizon)
    if value.ndim or value.dtype.kind not in "iuf" or value < 1 or value != np.floor(value) or not np.isfinite(value):
        raise ModelError(f"horizon must be a whole number, at least 1, or None, but {shown(horizon)} came")
    return int(value)


def _checked_discount(discount: Any, horizon: int | None) -> float:
    try:
        value = float(discount)
    except (TypeError, ValueError, OverflowError):
        raise ModelError(f"discount must be a number, but {shown(discount)} came") from None
    if horizon is None and not 0 <= value < 1:
        raise ModelError(f"discount must be at least 0 and below 1 without a horizon, but {value:g} came")
    if not 0 <= value <= 1:
        raise ModelError(f"discount must be at least 0 and at most 1, but {value:g} came")
    return value


def _checked_start(start: Any, states: int) -> Float[Array, " S"]:
    law = _number_array(start, "start")
    if law.ndim == 0:
        state = float(law)
        if state != np.floor(state) or not 0 <= state < states:
            raise ModelError(
                f"start must be one of the states 0 to {states - 1}, or their law, but {shown(start)} came"
            )
        return np.eye(1, states, int(state))[0]
    if law.shape != (states,):
        raise ModelError(f"start must be {[states]} to fit transition, but {list(law.shape)} came")
    bad = ~(np.isfinite(law) & (law >= 0))
    if bad.any():
        state = int(np.argmax(bad))
        raise ModelError(f"start gives state {state} the probability {law[state]:g}; it must be at least 0")
    if abs(law.sum() - 1) > _ROUNDING:
        raise ModelError(f"start sums to {law.sum():.9g}; it must sum to 1")
    return law / law.sum()


def _checked_policy(policy: Any, mdp: MDP, name: str) -> Float[Array, "... S A"]:
    array = _number_array(policy, name)
    stationary = (mdp.states, mdp.actions)
    if array.shape not in (stationary, mdp.policy_shape):
        wanted = f"{list(stationary)}" + ("" if mdp.horizon is None else f" or {list(mdp.policy_shape)}")
        raise ModelError(f"{name} must be {wanted} for this MDP, but {list(array.shape)} came")
    bad = ~(np.isfinite(array) & (array >= 0))
    if bad.any():
        index = np.unravel_index(int(np.argmax(bad)), array.shape)
        raise ModelError(
            f"{name} gives action {index[-1]} {_state_of(index[:-1])} the probability {array[index]:g}; "
            "it must be at least 0"
        )
    total = array.sum(axis=-1)
    off = np.abs(total - 1) > _ROUNDING
    if off.any():
        index = np.unravel_index(int(np.argmax(off)), total.shape)
        raise ModelError(f"{name} {_state_of(index)} sums to {total[index]:.9g}; every row must sum to 1")
    return np.broadcast_to(array / total[..., None], mdp.policy_shape)


def _state_of(index: tuple[Any, ...]) -> str:
    return f"in state {index[-1]}" + (f" at time {index[0]}" if len(index) == 2 else "")
