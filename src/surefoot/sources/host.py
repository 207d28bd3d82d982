"""Environments that live outside JAX: stepped from Python, saved as a seed and a list of actions."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import gymnasium
import jax
import numpy as np
from jaxtyping import PRNGKeyArray

from surefoot.arrays import generator
from surefoot.batch import Trajectory
from surefoot.distributions import Distribution
from surefoot.errors import EnvironmentFault, RunError
from surefoot.policy import HostPolicy, NeuralPolicy
from surefoot.sources.base import LARGEST_REWARD, Source
from surefoot.spaces import first_entries, lawful, some_allowed, space_tree, unlawful


class Observed(NamedTuple):
    """What N environments show: a tree of arrays [N, ...] and the allowed actions [N, K] or None."""

    observation: Any
    mask: np.ndarray | None


class Stepped(NamedTuple):
    """What a step of N environments gives, under next-step autoreset. Arrays are [N]."""

    observed: Observed
    reward: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray


class Simulator(Protocol):
    """N live environments. The same seeds and actions must give the same results."""

    observation_space: gymnasium.Space
    action_space: gymnasium.Space

    def watched(self) -> AbstractContextManager:
        """Within it, an environment that does not come back is interrupted, where it can be."""

    def reset(self, seeds: list[int]) -> Observed:
        """Start every environment from its own seed."""

    def send(self, actions: np.ndarray) -> None:
        """Begin to step every environment; one whose episode has just ended is reset instead."""

    def receive(self) -> Stepped:
        """What that step gave. Arrays may be overwritten by the next one."""

    def close(self) -> None:
        """Let the environments go."""


@dataclass(frozen=True)
class HostState:
    """Where N environments stand, as a value: their seed and the actions since they were last restarted.

    Attributes:
        seed: of the source; a restart derives new seeds from it.
        restarts: how many restarts there were.
        actions: what the environments were given since the last one, a block [T, N, ...] a collection.
        observed: what they show now.
        ended: whose episode has just ended, bool [N].
        time: steps since each episode's start, [N].
        steps: steps of each environment since the source's reset.
    """

    seed: int
    restarts: int
    actions: tuple[np.ndarray, ...]
    observed: Observed
    ended: np.ndarray
    time: np.ndarray
    steps: int


class NotRepeatable(EnvironmentFault):
    """Environments that, made anew from their seed and given the same actions, showed something else."""


class HostSource(Source):
    """N simulators, acted in on the host, each step written into arrays made beforehand.

    The live environments are only a cache of the state that they stand in: asked to go on from any other
    state, the source rebuilds them from the seed and replays the actions. Every `restart_every` steps they
    are restarted from a new seed, so that the actions kept stay few; episodes cut by that are dropped.
    """

    def __init__(
        self,
        make_simulator: Callable[[], Simulator],
        *,
        name: str,
        envs: int,
        horizon: int,
        restart_every: int,
    ):
        self.name = name
        self.envs = envs
        self.horizon = horizon
        self._restart_every = restart_every
        self._make_simulator = make_simulator
        self._simulator: Simulator | None = make_simulator()
        self.observation_space = self._simulator.observation_space
        self.action_space = self._simulator.action_space
        self._layout = space_tree(self.observation_space)
        self._used = False
        self._live: HostState | None = None

    def reset(self, key: PRNGKeyArray) -> HostState:
        """The start of every environment's first episode; the key's bits become the source's seed."""
        return self._start(int(generator(key).integers(2**32)), restarts=0, steps=0)

    # What does not fit into 32 bits becomes infinite, which `_check` reports.
    @np.errstate(over="ignore", invalid="ignore")
    def collect(
        self, policy: NeuralPolicy, state: HostState, key: PRNGKeyArray, enough: Callable[[], bool] | None = None
    ) -> tuple[Trajectory, HostState]:
        """T steps of each environment. Raises EnvironmentFault, naming environment, index and step.

        Where `enough`, asked after every step, says so, it ends there: the rows that are missing are no experience.
        """
        if sum(len(block) for block in state.actions) >= self._restart_every:
            state = self.restarted(state)
        simulator = self._standing_at(state)
        self._live = None  # until this collection is whole
        steps, envs = self.horizon, self.envs
        observations = jax.tree.map(
            lambda leaf: np.empty((steps + 1, *leaf.shape), _compact(leaf.dtype)), state.observed.observation
        )
        masks = None if state.observed.mask is None else np.empty((steps + 1, *state.observed.mask.shape), bool)
        reward = np.empty((steps, envs), np.float32)
        terminated, truncated = np.empty((steps, envs), bool), np.empty((steps, envs), bool)
        actor = HostPolicy(policy)
        noise = actor.noise((steps, envs), generator(key))
        outputs, sampled, given = [], [], []
        observed = state.observed
        step, taken = 0, steps
        try:
            with simulator.watched():
                for step in range(steps):
                    _write(observations, masks, step, observed)
                    observation, mask = _read(observations, masks, step)
                    outputs.append(actor.outputs(observation))
                    sampled.append(actor.sample(outputs[-1], mask, noise[step]))
                    given.append(lawful(actor.action_map(sampled[-1]), self.action_space))
                    simulator.send(given[-1])
                    observed, reward[step], terminated[step], truncated[step] = simulator.receive()
                    if enough is not None and step + 1 < steps and enough():
                        taken = step + 1
                        break
            _write(observations, masks, taken, observed)
        except EnvironmentFault as fault:
            self.close()
            ended = np.concatenate([state.ended[None], (terminated | truncated)[:step]])
            self._check(observations, masks, reward[:step], ended, state.steps)
            raise EnvironmentFault(f"{self.name}: step {state.steps + step}: {fault}") from fault
        ended = np.concatenate([state.ended[None], (terminated | truncated)[:taken]])
        self._check(observations, masks, reward[:taken], ended, state.steps)
        time, now = _times(ended, state.time)
        missing = steps - taken
        if missing:
            _fill(observations, masks, taken)
            reward[taken:], terminated[taken:], truncated[taken:] = 0, False, False
            time = np.concatenate([time, np.broadcast_to(np.where(ended[-1], 0, now), (missing, envs))])
        action = np.stack(sampled + missing * sampled[-1:])
        # Of what each action was sampled from, not of what the policy would say now.
        sampled_from = actor.distribution(
            np.stack(outputs + missing * outputs[-1:]), None if masks is None else masks[:-1]
        )
        rows: dict[str, Any] = {
            "observation": observations,
            "mask": masks,
            "action": action,
            "log_prob": np.asarray(_log_prob(sampled_from, action)),
            "reward": reward,
            "terminated": terminated,
            "truncated": truncated & ~terminated,
            "reset": np.concatenate([ended[:-1], np.ones((missing, envs), bool)]),
            "time": time,
        }
        self._live = HostState(
            seed=state.seed,
            restarts=state.restarts,
            actions=(*state.actions, np.stack(given)),
            observed=_copy(observed),
            ended=ended[-1],
            time=now,
            steps=state.steps + taken,
        )
        return Trajectory(**rows), self._live

    def restarted(self, state: HostState) -> HostState:
        """Every environment at the start of a new episode, as after `restart_every` steps. Raises EnvironmentFault."""
        return self._start(state.seed, state.restarts + 1, state.steps)

    def pack(self, state: HostState) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """A state as arrays and plain values: what the environments were given, and what they show now."""
        return packed(state)

    def unpack(self, arrays: dict[str, np.ndarray], facts: dict[str, Any], like: HostState) -> HostState:
        """The state that was packed. Raises RunError where it is none of these environments."""
        return unpacked(arrays, facts, like, self.action_space, self.name)

    def told(self, state: Any) -> dict[str, Any]:
        """Nothing."""
        return {}

    def close(self) -> None:
        """Let the environments go; the next collection rebuilds them."""
        if self._simulator is not None:
            self._simulator.close()
        self._simulator, self._live = None, None

    def _start(self, seed: int, restarts: int, steps: int) -> HostState:
        observed = self._reset_simulator(seed, restarts)
        nothing = np.zeros(self.envs, np.int32)
        self._live = HostState(seed, restarts, (), _copy(observed), nothing > 0, nothing, steps)
        return self._live

    def _reset_simulator(self, seed: int, restarts: int) -> Observed:
        # Environments are made anew, not just reset: what one keeps beyond a reset would not be replayed.
        if self._simulator is None or self._used:
            self.close()
            self._simulator = self._make_simulator()
        self._used = True
        seeds = np.random.SeedSequence((seed, restarts)).generate_state(self.envs, np.uint32)
        simulator = self._simulator
        try:
            with simulator.watched():
                return simulator.reset([int(value) & 0x7FFFFFFF for value in seeds])
        except EnvironmentFault as fault:
            self.close()
            raise EnvironmentFault(f"{self.name}: reset: {fault}") from fault

    def _standing_at(self, state: HostState) -> Simulator:
        """The live environments, rebuilt and replayed where they stand elsewhere."""
        if self._live is not state or self._simulator is None:
            observed = self._reset_simulator(state.seed, state.restarts)
            assert self._simulator is not None
            observed = self._replayed(self._simulator, state, observed)
            same = jax.tree.map(lambda a, b: bool(np.array_equal(a, b, equal_nan=True)), observed, state.observed)
            if not all(jax.tree.leaves(same)):
                raise NotRepeatable(
                    f"{self.name}: the environment does not repeat under its seed: given the same seed and "
                    "actions it showed other observations, so this state cannot be gone on from"
                )
        return self._simulator

    def _replayed(self, simulator: Simulator, state: HostState, observed: Observed) -> Observed:
        """What the environments show after the state's actions."""
        step = state.steps - sum(len(block) for block in state.actions)
        try:
            with simulator.watched():
                for block in state.actions:
                    for actions in block:
                        simulator.send(actions)
                        observed = simulator.receive().observed
                        step += 1
        except EnvironmentFault as fault:
            self.close()
            raise EnvironmentFault(f"{self.name}: replay of step {step}: {fault}") from fault
        return observed

    def _check(
        self, observations: Any, masks: np.ndarray | None, reward: np.ndarray, ended: np.ndarray, before: int
    ) -> None:
        """Raise EnvironmentFault at the first value that an environment should not have returned."""
        problems: list[tuple[int, int, str, Any]] = []
        steps = len(reward)
        for row, env, what, value in unlawful_observations(observations, self._layout, steps + 1):
            problems.append((row - 1, env, what, value))  # what row t shows came from step t - 1
        for row, env in np.argwhere(unlawful_reward(reward))[:1]:
            problems.append((row, env, "reward", reward[row, env]))
        if masks is not None:
            # No action is taken in an episode's last observation.
            forbidden = ~some_allowed(masks[: steps + 1], first_entries(self.action_space))
            for row, env in np.argwhere(forbidden & ~ended)[:1]:
                problems.append((row - 1, env, "action_mask", "nothing allowed"))
        if problems:
            self.close()
            row, env, what, value = min(problems, key=lambda problem: problem[:2])
            where = f"step {before + row}" if row >= 0 or before else "reset"
            raise EnvironmentFault(f"{self.name}: {where}: environment {env} {returned(what, value)}")


def packed(state: HostState) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """A state as arrays and plain values."""
    arrays = {f"observed/{index}": np.asarray(leaf) for index, leaf in enumerate(jax.tree.leaves(state.observed))}
    arrays |= {"ended": state.ended, "time": state.time}
    if state.actions:
        arrays["actions"] = np.concatenate(state.actions)
    lengths = [len(block) for block in state.actions]
    return arrays, {"seed": state.seed, "restarts": state.restarts, "steps": state.steps, "blocks": lengths}


def unpacked(
    arrays: dict[str, np.ndarray], facts: dict[str, Any], like: HostState, space: gymnasium.Space, name: str
) -> HostState:
    """The state that was packed, of environments `name` with this action space. Raises RunError where it is none of
    them."""
    try:
        leaves, structure = jax.tree.flatten(like.observed)
        observed = [arrays[f"observed/{index}"] for index in range(len(leaves))]
        fitting = all(a.shape == b.shape and a.dtype == b.dtype for a, b in zip(observed, leaves, strict=True))
        if not fitting:
            raise ValueError("the environments' observations are not those that were saved")
        for part, expected in (("ended", like.ended), ("time", like.time)):
            if arrays[part].shape != expected.shape or arrays[part].dtype != expected.dtype:
                raise ValueError(f"{part} is not that of these environments")
        counts = [facts["seed"], facts["restarts"], facts["steps"], *facts["blocks"]]
        if any(type(count) is not int or not 0 <= count < 2**63 for count in counts):
            raise ValueError("a count is no whole number")
        if facts["blocks"]:
            given, shape = arrays["actions"], (sum(facts["blocks"]), *like.ended.shape, *(space.shape or ()))
            if given.shape != shape or given.dtype != space.dtype:
                raise ValueError("the actions are not those of these environments")
        bounds = np.cumsum(facts["blocks"])[:-1]
        return HostState(
            seed=int(facts["seed"]),
            restarts=int(facts["restarts"]),
            actions=tuple(np.split(arrays["actions"], bounds)) if facts["blocks"] else (),
            observed=jax.tree.unflatten(structure, observed),
            ended=arrays["ended"],
            time=arrays["time"],
            steps=int(facts["steps"]),
        )
    except (LookupError, TypeError, ValueError) as error:
        raise RunError(f"{name}: the saved state does not fit: {error}") from None


def unlawful_reward(reward: np.ndarray) -> np.ndarray:
    """Which rewards are not finite, or too large to learn from."""
    return ~(np.abs(reward) <= LARGEST_REWARD)


def unlawful_observations(observations: Any, layout: Any, rows: int) -> list[tuple[int, int, str, Any]]:
    """For each plain space of `layout` the first observation [T, N, ...] that it does not hold, among the first
    `rows`: its row, its environment, its name and its value."""
    found = []
    for path, leaf in jax.tree.leaves_with_path(observations):
        for row, env, *_ in unlawful(leaf[:rows], _at_path(layout, path))[:1]:
            found.append((int(row), int(env), f"observation{jax.tree_util.keystr(path)}", leaf[row, env]))
    return found


def returned(what: str, value: Any) -> str:
    """What a fault says of a value that an environment should not have returned."""
    array = np.asarray(value)
    scalar = array.ndim == 0 and array.dtype.kind == "f"
    shown = f"{value:g}" if scalar else np.array2string(array, threshold=8, edgeitems=3).replace("\n", " ")
    too_large = what == "reward" and np.isfinite(value)
    remedy = f", but at most {LARGEST_REWARD:g} can be learned from; scale the rewards down" if too_large else ""
    return f"returned {what} {shown}{remedy}"


@jax.jit
def _log_prob(distribution: Distribution, action: Any) -> jax.Array:
    return distribution.log_prob(action)


def _compact(dtype: np.dtype) -> np.dtype:
    """What JAX would make of it, so that nothing is converted twice."""
    if np.issubdtype(dtype, np.floating):
        return np.dtype(np.float32)
    return np.dtype(np.int32) if np.issubdtype(dtype, np.integer) and dtype.itemsize > 4 else dtype


def _write(observations: Any, masks: np.ndarray | None, step: int, observed: Observed) -> None:
    for target, value in zip(jax.tree.leaves(observations), jax.tree.leaves(observed.observation), strict=True):
        target[step] = value
    if masks is not None:
        masks[step] = observed.mask


def _fill(observations: Any, masks: np.ndarray | None, step: int) -> None:
    """What was shown at `step` in every row after it too."""
    for target in [*jax.tree.leaves(observations), *([] if masks is None else [masks])]:
        target[step + 1 :] = target[step]


def _read(observations: Any, masks: np.ndarray | None, step: int) -> tuple[Any, Any]:
    row = observations[step] if isinstance(observations, np.ndarray) else jax.tree.map(lambda a: a[step], observations)
    return row, None if masks is None else masks[step]


def _copy(observed: Observed) -> Observed:
    # Simulators may write the next observation into the same memory.
    return jax.tree.map(np.array, observed)


def _times(ended: np.ndarray, time: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Steps since the episode's start in each row, and after the last; `ended` is [T + 1, N]."""
    times = np.empty((len(ended) - 1, len(time)), np.int32)
    for step, reset in enumerate(ended[:-1]):
        times[step] = np.where(reset, 0, time)
        time = np.where(reset, 0, time + 1)
    return times, time.astype(np.int32)


def _at_path(layout: Any, path: tuple) -> Any:
    for part in path:
        layout = layout[part.key if hasattr(part, "key") else part.idx]
    return layout
