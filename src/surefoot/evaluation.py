"""How good an agent is: whole episodes on Gymnasium's own task."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from surefoot.agent import Agent
from surefoot.errors import EnvironmentFault, RunError, SettingError, SurefootError
from surefoot.sources.environments import environment_name, maker
from surefoot.sources.guard import line
from surefoot.sources.gymnasium import GymnasiumSimulator
from surefoot.spaces import make_encoder, make_head, one_line

_LONGEST_EPISODE = 100_000
_SIDE_BY_SIDE = 20


def evaluate(
    agent: Agent,
    environment: str | Callable[[], Any],
    *,
    episodes: int = 20,
    seed: int = 0,
    deterministic: bool = True,
) -> dict[str, Any]:
    """Returns and lengths of `episodes` whole episodes: {"return": {"mean", "std", "episodes"}, "length": {"mean"}}.

    The standard deviation is over episodes (that of the population). Each environment stepped side by
    side plays a number of episodes fixed beforehand, so short ones are not favoured.

    Raises EnvironmentFault where an environment fails or an episode does not end in 100,000 steps.
    """
    if isinstance(episodes, bool) or not isinstance(episodes, int) or episodes < 1:
        raise SettingError(f"episodes must be a whole number, at least 1, but {episodes!r} came")
    count = min(episodes, _SIDE_BY_SIDE)
    wanted = np.full(count, episodes // count) + (np.arange(count) < episodes % count)
    sequence = np.random.SeedSequence((seed, 0x5EED))
    seeds = [int(value) & 0x7FFFFFFF for value in sequence.generate_state(count, np.uint32)]
    generator = np.random.default_rng(sequence)
    name = environment_name(environment)
    step = 0
    simulator = GymnasiumSimulator(maker(environment), count, asynchronous=False)
    for made, trained in zip(
        (make_encoder(simulator.observation_space), *make_head(simulator.action_space)),
        (agent.policy.encoder, agent.policy.head, agent.policy.action_map),
        strict=True,
    ):
        if made != trained:
            simulator.close()
            raise SettingError(
                f"environment {name!r} has the spaces {one_line(simulator.observation_space)} and "
                f"{one_line(simulator.action_space)}, but the agent was trained for "
                f"{one_line(agent.observation_space)} and {one_line(agent.action_space)}"
            )
    returns: list[float] = []
    lengths: list[int] = []
    try:
        observed = simulator.reset(seeds)
        total, length = np.zeros(count), np.zeros(count, int)
        fresh = np.zeros(count, bool)
        while wanted.any():
            # The simulator writes its next observation into the same memory.
            observation = jax.tree.map(np.array, observed.observation)
            action = agent.act(observation, observed.mask, deterministic=deterministic, generator=generator)
            simulator.send(action)
            observed, reward, terminated, truncated = simulator.receive()
            step += 1
            if not np.isfinite(reward).all():
                index = int(np.argmin(np.isfinite(reward)))
                raise EnvironmentFault(f"environment {index} returned reward {reward[index]}")
            total += reward
            length += ~fresh
            ended = (terminated | truncated) & ~fresh
            for index in np.flatnonzero(ended).tolist():
                if wanted[index]:
                    returns.append(float(total[index]))
                    lengths.append(int(length[index]))
                    wanted[index] -= 1
                total[index] = 0.0
                length[index] = 0
            fresh = ended
            if length.max() >= _LONGEST_EPISODE:
                raise EnvironmentFault(
                    f"an episode has not ended after {_LONGEST_EPISODE} steps; wrap it in gymnasium.wrappers.TimeLimit"
                )
    except EnvironmentFault as fault:
        raise EnvironmentFault(f"{name}: evaluation: step {step}: {fault}") from fault
    finally:
        simulator.close()
    return {
        "return": {"mean": float(np.mean(returns)), "std": float(np.std(returns)), "episodes": episodes},
        "length": {"mean": float(np.mean(lengths))},
    }


def repeatable(agent: Agent, environment: str | Callable[[], Any], *, seed: int = 0, steps: int = 100) -> bool:
    """Whether two of the environment, reset with one seed and given the same actions, show the same bits.

    Raises EnvironmentFault where an environment fails.
    """
    name = environment_name(environment)
    make = maker(environment)
    copies: list[Any] = []
    generator = np.random.default_rng(np.random.SeedSequence((seed, 0x5A3E)))
    try:
        copies += [make() for _ in range(2)]
        shown = [env.reset(seed=seed % 2**31) for env in copies]
        for _ in range(steps):
            if not _same([observation for observation, _ in shown]):
                return False
            observation, info = shown[0]
            mask = info.get("action_mask")
            action = _given(agent.act(observation, mask, deterministic=False, generator=generator))
            stepped = [env.step(action) for env in copies]
            if not _same([result[:4] for result in stepped]):
                return False
            shown = [(result[0], result[4]) for result in stepped]
            if stepped[0][2] or stepped[0][3]:
                shown = [env.reset() for env in copies]
        return True
    except SurefootError:
        raise
    except Exception as error:
        raise EnvironmentFault(f"{name}: {line(error)}") from error
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
    """One deterministic episode as a moving picture, .gif or .mp4 (which needs imageio-ffmpeg).

    Raises RunError where the environment cannot be drawn here or the file cannot be written.
    """
    import imageio.v2 as imageio

    file = Path(file)
    if file.suffix not in (".gif", ".mp4"):
        raise RunError(f"video must end in .gif or .mp4, but {file.name!r} came")
    try:
        env = maker(environment, render_mode="rgb_array")()
        try:
            observation, info = env.reset(seed=seed)
            frames, over = [env.render()], False
            while not over and len(frames) < _LONGEST_EPISODE:
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
        line = " ".join(f"{type(error).__name__}: {error}".split())
        raise RunError(f"video {file} cannot be made: {line}") from error
