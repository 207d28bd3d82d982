"""Environments written in JAX: two pure functions, stepped on the device by one compiled program."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from surefoot.arrays import bits, from_bits
from surefoot.batch import Trajectory
from surefoot.errors import EnvironmentFault, RunError, SettingError, shown
from surefoot.policy import NeuralPolicy
from surefoot.sources.base import LARGEST_REWARD, Source
from surefoot.spaces import lawful_values, make_encoder, make_head, one_line, space_tree


class Transition(NamedTuple):
    """What a step of a functional environment gives.

    Attributes:
        state: after the step.
        observation: of that state, also where the episode has ended there.
        reward: [].
        terminated: the episode ended in a state whose value is 0, bool [].
        truncated: the episode was cut, bool [].
    """

    state: Any
    observation: Any
    reward: Float[Array, ""]
    terminated: Bool[Array, ""]
    truncated: Bool[Array, ""]


@dataclass(frozen=True, eq=False)
class FunctionalEnvironment:
    """An environment as two pure functions that JAX can trace. It never resets itself.

    Attributes:
        reset: from a key to the first state and its observation.
        step: from a key, a state and an action of `action_space` to a Transition.
        observation_space, action_space: Gymnasium's.
        tells_truncation: whether a time limit is told from a real end; where it is not, every end counts as real.
        name: of it where it is given itself and not by what makes it: of its runs' folders, and in <> in their
            config.json. By default FunctionalEnvironment.

    Raises SettingError for a name that is no plain one.
    """

    reset: Callable[[PRNGKeyArray], tuple[Any, Any]]
    step: Callable[[PRNGKeyArray, Any, Any], Transition]
    observation_space: gymnasium.Space
    action_space: gymnasium.Space
    tells_truncation: bool = True
    name: str | None = None

    def __post_init__(self) -> None:
        if self.name is not None and not (isinstance(self.name, str) and _NAME.fullmatch(self.name)):
            raise SettingError(
                "name must be a letter or digit and at most 99 more of them, dots, dashes and underscores, but "
                f"{shown(self.name)} came"
            )


_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")  # as it is to be part of a folder's


class FunctionalState(NamedTuple):
    """Where N environments stand; every leaf has them as its first axis but `steps`.

    Attributes:
        inner: the environments' own states.
        observation: what they show.
        ended: whose episode has just ended, bool [N].
        time: steps since each episode's start, [N].
        steps: of each environment since the source's reset.
    """

    inner: Any
    observation: Any
    ended: Bool[Array, " N"]
    time: Int[Array, " N"]
    steps: Int[Array, ""]


class FunctionalSource(Source):
    """N copies of a functional environment. `roll_out` is what `collect` compiles, for programs that hold it."""

    def __init__(self, environment: FunctionalEnvironment, *, name: str, envs: int, horizon: int):
        make_encoder(environment.observation_space)
        make_head(environment.action_space)
        self.name = name
        self.envs = envs
        self.horizon = horizon
        self.observation_space = environment.observation_space
        self.action_space = environment.action_space
        self.environment = environment
        self._shown = jax.eval_shape(environment.reset, jax.random.key(0))[1]
        self._reset = jax.jit(self.begin)
        self._collect = jax.jit(self.roll_out)
        self._first_fault = jax.jit(self.first_fault)

    def reset(self, key: PRNGKeyArray) -> FunctionalState:
        """The start of every environment's first episode. Raises EnvironmentFault where it shows what is not finite or
        not of its space."""
        state = self._reset(key)
        for index, each in enumerate(fit_to_learn_from(state.observation, self.observation_space)):
            if each is not None and not bool(each.all()):
                raise EnvironmentFault(f"{self.name}: reset returned {self._unfit(index)}")
        return state

    def collect(
        self, policy: NeuralPolicy, state: FunctionalState, key: PRNGKeyArray
    ) -> tuple[Trajectory, FunctionalState]:
        """T steps of each environment. Raises EnvironmentFault, naming environment, index and step."""
        trajectory, after = self._collect(policy, state, key)
        self.check(self._first_fault(trajectory), int(state.steps))
        return trajectory, after

    def begin(self, key: PRNGKeyArray) -> FunctionalState:
        """`reset`, for a program that holds it."""
        inner, observation = jax.vmap(self.environment.reset)(jax.random.split(key, self.envs))
        nothing = jnp.zeros(self.envs, jnp.int32)
        return FunctionalState(inner, observation, nothing > 0, nothing, jnp.zeros((), jnp.int32))

    def roll_out(
        self, policy: NeuralPolicy, state: FunctionalState, key: PRNGKeyArray
    ) -> tuple[Trajectory, FunctionalState]:
        """T steps of each environment under the policy, for a program that holds it. Nothing is checked."""
        step = partial(self._step, policy)
        # One call of the generator for all of them: each call is a hundred instructions to compile.
        keys = jax.random.split(key, (self.horizon, 2 * self.envs + 1))
        after, (before, rows) = jax.lax.scan(step, state, keys)
        observation = jax.tree.map(lambda rest, last: jnp.concatenate([rest, last[None]]), before, after.observation)
        return Trajectory(observation=observation, mask=None, **rows), after

    def _step(self, policy: NeuralPolicy, state: FunctionalState, keys: PRNGKeyArray) -> Any:
        step_keys, reset_keys, act_key = keys[: self.envs], keys[self.envs : -1], keys[-1]
        distribution = policy(state.observation)
        action = distribution.sample(act_key)
        given = policy.action_map(action)
        if np.issubdtype(self.action_space.dtype, np.floating):
            given = given.astype(jnp.result_type(float))
        stepped = jax.vmap(self.environment.step)(step_keys, state.inner, given)
        begun, first = jax.vmap(self.environment.reset)(reset_keys)

        def fresh_where_ended(fresh: Array, old: Array) -> Array:
            return jax.vmap(jnp.where)(state.ended, fresh, old)

        inner, observation = jax.tree.map(fresh_where_ended, (begun, first), (stepped.state, stepped.observation))
        going = ~state.ended
        terminated = stepped.terminated & going
        truncated = stepped.truncated & going & ~terminated
        rows = {
            "action": action,
            "log_prob": distribution.log_prob(action),
            "reward": jnp.where(going, stepped.reward, 0),
            "terminated": terminated,
            "truncated": truncated,
            "reset": state.ended,
            "time": jnp.where(going, state.time, 0),
        }
        after = FunctionalState(
            inner=inner,
            observation=observation,
            ended=terminated | truncated,
            time=jnp.where(going, state.time + 1, 0),
            steps=state.steps + 1,
        )
        return after, (state.observation, rows)

    def first_fault(self, trajectory: Trajectory) -> Fault:
        """The first reward, or observation that a row led to, that nothing can be learned from."""
        shape = trajectory.reward.shape
        after = jax.tree.map(lambda leaf: leaf[1:], trajectory.observation)
        fit = fit_to_learn_from(after, self.observation_space)
        wrong = [jnp.zeros(shape, bool) if each is None else ~each.reshape(*shape, -1).all(axis=-1) for each in fit]
        parts = jnp.stack([~(jnp.abs(trajectory.reward) <= LARGEST_REWARD), *wrong])
        anywhere = parts.any(axis=0)
        index = jnp.argmax(anywhere)
        row, env = index // shape[1], index % shape[1]
        return Fault(jnp.any(anywhere), row, env, jnp.argmax(parts[:, row, env]) - 1)

    def check(self, fault: Fault, before: int) -> None:
        """Raise EnvironmentFault where `first_fault` found one; `before` are the steps before the trajectory."""
        if not bool(fault.found):
            return
        part = int(fault.part)
        reward = f"reward with a value that is not finite or beyond {LARGEST_REWARD:g}"
        raise EnvironmentFault(
            f"{self.name}: step {before + int(fault.row)}: environment {int(fault.env)} returned "
            + (reward if part < 0 else self._unfit(part))
        )

    def _unfit(self, part: int) -> str:
        """What is told of an observation whose leaf `part` nothing can be learned from."""
        name = jax.tree_util.keystr(jax.tree.leaves_with_path(self._shown)[part][0])
        space = jax.tree.leaves(space_tree(self.observation_space))[part]
        real = isinstance(space, spaces.Box) and not np.issubdtype(space.dtype, np.integer)
        wrong = "is not finite" if real else f"its space {one_line(space)} cannot hold"
        return f"observation{name} with a value that {wrong}"

    def pack(self, state: FunctionalState) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """The whole state as arrays."""
        return {str(index): bits(leaf) for index, leaf in enumerate(jax.tree.leaves(state))}, {}

    def unpack(self, arrays: dict[str, np.ndarray], facts: dict[str, Any], like: FunctionalState) -> FunctionalState:
        """The state that was packed. Raises RunError where it is none of these environments."""
        leaves, structure = jax.tree.flatten(like)
        wanted = {str(index): bits(leaf) for index, leaf in enumerate(leaves)}
        for index, expected in wanted.items():
            found = arrays.get(index)
            if found is None or found.shape != expected.shape or found.dtype != expected.dtype:
                raise RunError(f"{self.name}: the saved state does not fit: its part {index} is not that of the source")
        return jax.tree.unflatten(structure, [from_bits(arrays[str(index)], leaf) for index, leaf in enumerate(leaves)])

    def told(self, state: Any) -> dict[str, Any]:
        """Nothing."""
        return {}

    def close(self) -> None:
        """Nothing is held."""


class Fault(NamedTuple):
    """Where a trajectory first holds what nothing can be learned from.

    Attributes:
        found: whether it does.
        row, env: which step of which environment returned it.
        part: which leaf of the observation it is in; -1 for the reward.
    """

    found: Bool[Array, ""]
    row: Int[Array, ""]
    env: Int[Array, ""]
    part: Int[Array, ""]


def fit_to_learn_from(observation: Any, space: gymnasium.Space) -> list[Array | None]:
    """For each leaf of observations of `space`, with any leading axes, which of its numbers can be learned from: the
    same as of simulators on the host. None where every number of the leaf's type can, so that nothing is computed."""
    leaves = zip(jax.tree.leaves(observation), jax.tree.leaves(space_tree(space)), strict=True)
    return [_fit(leaf, plain) for leaf, plain in leaves]


def _fit(leaf: Array, space: Any) -> Array | None:
    real = jnp.issubdtype(leaf.dtype, jnp.inexact)
    if not isinstance(space, spaces.Box):
        return None if leaf.dtype == bool and isinstance(space, spaces.MultiBinary) else lawful_values(leaf, space)
    if not np.issubdtype(space.dtype, np.integer):
        return lawful_values(leaf, space) if real else None
    limits = np.iinfo(space.dtype)
    if real:
        return (leaf == jnp.floor(leaf)) & (leaf >= float(limits.min)) & (leaf <= float(limits.max))
    if leaf.dtype == bool or np.can_cast(leaf.dtype, space.dtype):
        return None
    own = np.iinfo(leaf.dtype)  # beyond which JAX takes no whole number to compare with
    return (leaf >= max(limits.min, own.min)) & (leaf <= min(limits.max, own.max))
