"""How good an agent is: whole episodes on Gymnasium's own task."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray

from surefoot.agent import Agent
from surefoot.config import Collection
from surefoot.errors import EnvironmentFault, RunError, SettingError, SurefootError
from surefoot.policy import NeuralPolicy
from surefoot.settings import check
from surefoot.sources import functional_environment
from surefoot.sources.environments import environment_name, guarded, maker
from surefoot.sources.functional import FunctionalEnvironment, fit_to_learn_from
from surefoot.sources.guard import line
from surefoot.sources.gymnasium import GymnasiumSimulator
from surefoot.sources.host import returned, unlawful_observations, unlawful_reward
from surefoot.sources.watch import Watch
from surefoot.spaces import first_entries, make_encoder, make_head, one_line, some_allowed, space_tree

LONGEST_EPISODE = 30_000
"""Steps after which an evaluation cuts an episode that has not ended."""

_SIDE_BY_SIDE = 20
_LONGEST_FILM = 3_000  # frames, which are held in memory
_STEP_SECONDS = Collection().step_seconds


def evaluate(
    agent: Agent,
    environment: str | Callable[[], Any],
    *,
    episodes: int = 20,
    seed: int = 0,
    deterministic: bool = True,
    step_seconds: float | None = _STEP_SECONDS,
) -> dict[str, Any]:
    """Returns and lengths of whole episodes: {"return": {"mean", "std", "episodes"}, "length": {"mean"}, "cut"}.

    The standard deviation is over episodes (that of the population). Each environment stepped side by
    side plays a number of episodes fixed beforehand, so short ones are not favoured.

    An episode that has not ended after 30,000 steps is cut there and counted with its return until then; "cut" says
    how many were. After a first cut no further episode is begun, so "episodes" may be fewer than were asked for: an
    environment that never ends costs no more than 60,000 steps of each of up to twenty copies.

    `step_seconds` is how long one step or reset of an environment may take (see `surefoot train --help`).

    Raises EnvironmentFault where an environment fails, naming it and the step.
    """
    return summary(
        play(agent, environment, episodes=episodes, seed=seed, deterministic=deterministic, step_seconds=step_seconds)
    )


class Episode(NamedTuple):
    """An episode's undiscounted return, its length in steps, and whether it was cut before its end."""

    total: float
    length: int
    cut: bool


def play(
    agent: Agent,
    environment: str | Callable[[], Any],
    *,
    episodes: int,
    seed: int,
    deterministic: bool = True,
    step_seconds: float | None = _STEP_SECONDS,
) -> list[Episode]:
    """The episodes of `evaluate`, which says how they are played and what is raised, in the order of their ends."""
    if isinstance(episodes, bool) or not isinstance(episodes, int) or episodes < 1:
        raise SettingError(f"episodes must be a whole number, at least 1, but {episodes!r} came")
    check(Collection, "step_seconds", step_seconds)
    count = min(episodes, _SIDE_BY_SIDE)
    wanted = np.full(count, episodes // count) + (np.arange(count) < episodes % count)
    sequence = np.random.SeedSequence((seed, 0x5EED))
    seeds = [int(value) & 0x7FFFFFFF for value in sequence.generate_state(count, np.uint32)]
    generator = np.random.default_rng(sequence)
    name = environment_name(environment)
    if (functional := functional_environment(environment)) is not None:
        _check_spaces(agent, functional, name)
        return _play_functional(agent, functional, name, episodes, seed, deterministic)
    limited = functools.partial(_limited, maker(environment))
    simulator = GymnasiumSimulator(limited, count, step_seconds=step_seconds)
    try:
        _check_spaces(agent, simulator, name)
        layout = space_tree(simulator.observation_space)
        with simulator.watched():
            return _play(agent, simulator, layout, seeds, wanted, deterministic, generator)
    except EnvironmentFault as fault:
        raise EnvironmentFault(f"{name}: evaluation: {fault}") from fault
    finally:
        simulator.close()


def summary(played: list[Episode]) -> dict[str, Any]:
    """What `evaluate` returns of these episodes."""
    returns, lengths = np.array([row.total for row in played]), np.array([row.length for row in played])
    return {
        "return": {"mean": float(returns.mean()), "std": float(returns.std()), "episodes": len(played)},
        "length": {"mean": float(lengths.mean())},
        "cut": sum(row.cut for row in played),
    }


def _play_functional(
    agent: Agent, environment: FunctionalEnvironment, name: str, episodes: int, seed: int, deterministic: bool
) -> list[Episode]:
    """One episode in each copy, all copies in one program, as often as is needed; whoever has ended waits."""
    copies = min(episodes, _SIDE_BY_SIDE)
    play = _player(environment, copies, deterministic)
    key = jax.random.fold_in(jax.random.key(seed), 0x5EED)
    played: list[Episode] = []
    while len(played) < episodes and not any(episode.cut for episode in played):
        key, play_key = jax.random.split(key)
        total, length, over, sound = jax.device_get(play(agent.policy, play_key))
        for index in np.flatnonzero(~sound)[:1]:
            where = f"evaluation: step {length[index] - 1}: environment {index}"
            raise EnvironmentFault(
                f"{name}: {where} returned a reward or an observation that is not finite or not of its space"
            )
        played += [Episode(float(a), int(b), not c) for a, b, c in zip(total, length, over, strict=True)]
    return played[:episodes]


def _fit(observation: Any, space: gymnasium.Space) -> Any:
    """Which of the copies show only what their space can hold."""
    parts = [part for part in fit_to_learn_from(observation, space) if part is not None]
    each = [part.reshape(len(part), -1).all(axis=1) for part in parts]
    return functools.reduce(jnp.logical_and, each, jnp.asarray(True))


@functools.lru_cache(maxsize=16)
def _player(environment: FunctionalEnvironment, episodes: int, deterministic: bool) -> Callable[..., Any]:
    """The program: from a policy and a key to each episode's return, length, whether it has ended, and whether its
    rewards and observations were sound. Kept, as the many runs of a study are evaluated by one."""

    def step(policy: NeuralPolicy, carry: Any, key: PRNGKeyArray) -> Any:
        inner, observation, total, length, over, sound = carry
        act_key, step_key = jax.random.split(key)
        distribution = policy(observation)
        action = distribution.mode() if deterministic else distribution.sample(act_key)
        stepped = jax.vmap(environment.step)(jax.random.split(step_key, episodes), inner, policy.action_map(action))
        total = total + jnp.where(over, 0, stepped.reward)
        return (
            stepped.state,
            stepped.observation,
            total,
            length + ~over,
            over | stepped.terminated | stepped.truncated,
            sound & (over | (jnp.isfinite(total) & _fit(stepped.observation, environment.observation_space))),
        )

    def going(carry: Any) -> Any:
        (_, _, _, length, over, sound), _ = carry
        return ~jnp.all(over) & jnp.all(sound) & (jnp.max(length) < LONGEST_EPISODE)

    @jax.jit
    def play(policy: NeuralPolicy, key: PRNGKeyArray) -> Any:
        def body(carry: Any) -> Any:
            inner, key = carry
            key, step_key = jax.random.split(key)
            return step(policy, inner, step_key), key

        begin_key, key = jax.random.split(key)
        inner, observation = jax.vmap(environment.reset)(jax.random.split(begin_key, episodes))
        nothing = jnp.zeros(episodes, jnp.int32)
        begun = inner, observation, nothing.astype(jnp.float32), nothing, nothing > 0, jnp.ones(episodes, bool)
        (_, _, total, length, over, sound), _ = jax.lax.while_loop(going, body, (begun, key))
        return total, length, over, sound

    return play


# What does not fit into 32 bits becomes infinite, which is reported.
@np.errstate(over="ignore", invalid="ignore")
def _play(
    agent: Agent,
    simulator: GymnasiumSimulator,
    layout: Any,
    seeds: list[int],
    wanted: np.ndarray,
    deterministic: bool,
    generator: np.random.Generator,
) -> list[Episode]:
    """`wanted` episodes of each environment. Raises EnvironmentFault, naming the step."""
    played: list[Episode] = []
    count = len(wanted)
    total, length = np.zeros(count), np.zeros(count, int)
    fresh = np.zeros(count, bool)
    cutting = False
    step = 0
    where = "reset"
    try:
        observed = simulator.reset(seeds)
        while wanted.any():
            # The simulator writes its next observation into the same memory.
            observation, mask = jax.tree.map(np.array, (observed.observation, observed.mask))
            if mask is not None:
                mask[fresh] = True  # no action is taken in an episode's last observation
            _check(observation, mask, layout, agent.action_space)
            where = f"step {step}"
            action = agent.act(observation, mask, deterministic=deterministic, generator=generator)
            simulator.send(action)
            observed, reward, terminated, truncated = simulator.receive()
            for index in np.flatnonzero(unlawful_reward(reward))[:1]:
                raise EnvironmentFault(f"environment {index} {returned('reward', reward[index])}")
            step += 1
            total += reward
            length += ~fresh
            ended = (terminated | truncated) & ~fresh
            for index in np.flatnonzero(ended & (wanted > 0)).tolist():
                cut = bool(length[index] >= LONGEST_EPISODE and not terminated[index])
                played.append(Episode(float(total[index]), int(length[index]), cut))
                wanted[index] -= 1
                cutting |= cut
            if cutting:
                wanted = np.minimum(wanted, ~(ended | fresh))  # what runs is played on
            total[ended], length[ended] = 0.0, 0
            fresh = ended
    except EnvironmentFault as fault:
        raise EnvironmentFault(f"{where}: {fault}") from fault
    return played


def _check(observation: Any, mask: np.ndarray | None, layout: Any, space: Any) -> None:
    """Raise EnvironmentFault at the first observation that an agent cannot act on."""
    narrow = jax.tree.map(
        lambda leaf: leaf.astype(np.float32)[None] if leaf.dtype.kind == "f" else leaf[None], observation
    )
    for _, index, what, value in unlawful_observations(narrow, layout, 1):
        raise EnvironmentFault(f"environment {index} {returned(what, value)}")
    for index in np.flatnonzero(~some_allowed(mask, first_entries(space)))[:1] if mask is not None else ():
        raise EnvironmentFault(f"environment {index} {returned('action_mask', 'nothing allowed')}")


def _check_spaces(agent: Agent, simulator: GymnasiumSimulator | FunctionalEnvironment, name: str) -> None:
    """Raise SettingError where the environments are not those that the agent was trained for."""
    encoder, (head, action_map) = make_encoder(simulator.observation_space), make_head(simulator.action_space)
    policy = agent.policy
    if (encoder, head) != (policy.encoder, policy.head) or not action_map.fits(policy.action_map):
        raise SettingError(
            f"environment {name!r} has the spaces {one_line(simulator.observation_space)} and "
            f"{one_line(simulator.action_space)}, but the agent was trained for "
            f"{one_line(agent.observation_space)} and {one_line(agent.action_space)}"
        )


def _limited(make: Callable[..., gymnasium.Env]) -> gymnasium.Env:
    return gymnasium.wrappers.TimeLimit(make(), LONGEST_EPISODE)


def repeatable(
    agent: Agent,
    environment: str | Callable[[], Any],
    *,
    seed: int = 0,
    steps: int = 100,
    step_seconds: float | None = _STEP_SECONDS,
) -> bool:
    """Whether two of the environment, reset with one seed and given the same actions, show the same bits.

    Raises EnvironmentFault where an environment fails.
    """
    name = environment_name(environment)
    if functional_environment(environment) is not None:
        return True  # it is a function of its keys and actions
    make = maker(environment)
    copies: list[Any] = []
    generator = np.random.default_rng(np.random.SeedSequence((seed, 0x5A3E)))
    with Watch(step_seconds) as watch:
        try:
            copies.extend(guarded(make, index, watch) for index in range(2))  # one that is made is closed
            shown = [env.reset(seed=seed % 2**31) for env in copies]
            for _ in range(steps):
                if not _same([observation for observation, _ in shown]):
                    return False
                observation, info = shown[0]
                action = agent.act(observation, info.get("action_mask"), deterministic=False, generator=generator)
                # An environment may write into what it is given.
                stepped = [env.step(_given(action.copy())) for env in copies]
                if not _same([result[:4] for result in stepped]):
                    return False
                shown = [(result[0], result[4]) for result in stepped]
                if stepped[0][2] or stepped[0][3]:
                    shown = [env.reset() for env in copies]
            return True
        except SurefootError as error:
            raise EnvironmentFault(f"{name}: {error}") from error
        finally:
            for env in copies:
                env.close()


def _given(action: np.ndarray) -> Any:
    """The action as an environment alone is given it: a number where it is one."""
    return action if action.ndim else action[()]


def _same(pair: list[Any]) -> bool:
    one, other = (jax.tree.leaves(item) for item in pair)
    return len(one) == len(other) and all(
        np.array_equal(a, b, equal_nan=np.asarray(a).dtype.kind == "f") for a, b in zip(one, other, strict=True)
    )


def film(agent: Agent, environment: str | Callable[[], Any], file: str | Path, *, seed: int = 0) -> None:
    """One deterministic episode, at most 3,000 frames of it, as a moving picture, .gif or .mp4 (which needs
    imageio-ffmpeg).

    Raises RunError where the environment cannot be drawn here or the file cannot be written.
    """
    import imageio.v2 as imageio

    file = Path(file)
    if file.suffix not in (".gif", ".mp4"):
        raise RunError(f"video must end in .gif or .mp4, but {file.name!r} came")
    if functional_environment(environment) is not None:
        raise RunError(f"video: {environment_name(environment)} is written in JAX, and nothing here draws those")
    try:
        with Watch(_STEP_SECONDS) as watch:
            env = guarded(maker(environment, render_mode="rgb_array"), 0, watch)
            try:
                observation, info = env.reset(seed=seed)
                frames, over = [env.render()], False
                while not over and len(frames) < _LONGEST_FILM:
                    mask = info.get("action_mask")
                    observation, _, terminated, truncated, info = env.step(_given(agent.act(observation, mask)))
                    frames.append(env.render())
                    over = terminated or truncated
                rate = env.metadata.get("render_fps", 30)
            finally:
                env.close()
        options = {"duration": 1000 / rate, "loop": 0} if file.suffix == ".gif" else {"fps": rate}
        imageio.mimwrite(file, frames, **options)  # type: ignore[arg-type]
    except Exception as error:
        raise RunError(f"video {file} cannot be made: {line(error)}") from error
