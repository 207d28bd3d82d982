"""EnvPool environments: Gymnasium's tasks stepped by threads in C++."""

from __future__ import annotations

import contextlib
import functools
from typing import Any

import gymnasium
import numpy as np

from surefoot import config
from surefoot.compilation import cores
from surefoot.errors import EnvironmentNotFound
from surefoot.sources.guard import quiet
from surefoot.sources.host import HostSource, Observed, Stepped
from surefoot.spaces import make_encoder, make_head

# EnvPool's toy-text tasks are older versions under the same names, without Gymnasium's action masks.
_NOT_GYMNASIUMS = "gymnasium.envs.toy_text"


def has_environment(name: str) -> bool:
    """Whether EnvPool is installed and has Gymnasium's task of this name, toy-text aside."""
    spec = gymnasium.registry.get(name)
    if spec is None or str(spec.entry_point).startswith(_NOT_GYMNASIUMS):
        return False
    try:
        with quiet():
            import envpool
    except ImportError:
        return False
    return name in envpool.list_all_envs()


def envpool_source(name: str, settings: config.Collection, threads: int | None = None) -> HostSource:
    """`settings.envs` copies of an EnvPool task, stepped by as many threads; by default one a core.

    Raises EnvironmentNotFound, UnsupportedSpace.
    """
    if not has_environment(name):
        raise EnvironmentNotFound(
            f"environment {name!r} is none of EnvPool's Gymnasium tasks, or envpool is not installed; "
            "leave --source at auto, or choose gymnasium"
        )
    make = functools.partial(EnvPoolSimulator, name, settings.envs, threads)
    simulator = make()
    make_encoder(simulator.observation_space)
    make_head(simulator.action_space)
    return HostSource(
        make,
        name=name,
        envs=settings.envs,
        horizon=settings.horizon,
        restart_every=settings.restart_every or 10 * simulator.episode_limit,
    )


class EnvPoolSimulator:
    """One EnvPool, made anew at each reset because its seed is fixed when it is made."""

    def __init__(self, name: str, count: int, threads: int | None = None):
        with quiet():
            import envpool

            spec = envpool.make_spec(name)
            self.observation_space: gymnasium.Space = spec.gymnasium_observation_space
            self.action_space: gymnasium.Space = spec.gymnasium_action_space
        threads = min(count, threads or len(cores()))
        self._make = functools.partial(envpool.make_gymnasium, name, num_envs=count, num_threads=threads)
        self._pool: Any = None
        self.episode_limit = int(spec.config.max_episode_steps)

    def watched(self) -> contextlib.AbstractContextManager:
        """Nothing: what C++ does cannot be interrupted."""
        return contextlib.nullcontext()

    def reset(self, seeds: list[int]) -> Observed:
        """Make the pool from the first seed; environment i gets that plus i."""
        self.close()
        with quiet():
            self._pool = self._make(seed=seeds[0])
            observation, _ = self._pool.reset()
        return Observed(observation, None)

    def send(self, actions: np.ndarray) -> None:
        """Begin to step every environment; one whose episode has just ended is reset instead."""
        self._pool.send(actions)

    def receive(self) -> Stepped:
        """What that step gave."""
        observation, reward, terminated, truncated, _ = self._pool.recv()
        return Stepped(Observed(observation, None), reward, terminated, truncated)

    def close(self) -> None:
        """Let the pool go."""
        if self._pool is not None:
            self._pool.close()
        self._pool = None
