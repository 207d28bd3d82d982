"""Gymnasium environments, stepped in this process or in one process each."""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import multiprocessing.connection
import os
import time
import warnings
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv

from surefoot import config
from surefoot.errors import EnvironmentFault
from surefoot.sources.environments import environment_name, guarded, maker
from surefoot.sources.guard import choices, line
from surefoot.sources.host import HostSource, Observed, Stepped
from surefoot.spaces import make_encoder, make_head

_SLOW_STEP_SECONDS = 0.5e-3
_ASSUMED_EPISODE_LIMIT = 1000


def gymnasium_source(environment: str | Callable[[], Any], settings: config.Collection) -> HostSource:
    """`settings.envs` copies of a Gymnasium environment. Raises EnvironmentNotFound, UnsupportedSpace."""
    make = maker(environment)
    name = environment_name(environment)
    probe = make()
    try:
        make_encoder(probe.observation_space)
        make_head(probe.action_space)
        limit = getattr(probe.spec, "max_episode_steps", None) or _ASSUMED_EPISODE_LIMIT
        mode = settings.vectorisation
        if mode == "auto":
            slow = settings.envs > 1 and (os.cpu_count() or 1) > 1 and _step_seconds(probe) > _SLOW_STEP_SECONDS
            mode = "async" if slow else "sync"
    finally:
        probe.close()
    return HostSource(
        functools.partial(GymnasiumSimulator, make, settings.envs, asynchronous=mode == "async"),
        name=name,
        envs=settings.envs,
        horizon=settings.horizon,
        restart_every=settings.restart_every or 10 * limit,
    )


def _step_seconds(env: gymnasium.Env) -> float:
    """Median time of a few random steps; 0 where they cannot be taken, for collection to say why."""
    spent = []
    try:
        _, info = env.reset(seed=0)
        for _ in range(20):
            action = env.action_space.sample(info.get("action_mask")) if _maskable(env) else env.action_space.sample()
            before = time.perf_counter()
            _, _, terminated, truncated, info = env.step(action)
            spent.append(time.perf_counter() - before)
            if terminated or truncated:
                _, info = env.reset()
    except Exception:
        return 0.0
    return float(np.median(spent))


def _maskable(env: gymnasium.Env) -> bool:
    return isinstance(env.action_space, spaces.Discrete)


class GymnasiumSimulator:
    """A Gymnasium vector environment under next-step autoreset, with action masks from `info`."""

    def __init__(self, make: Callable[[], gymnasium.Env], count: int, *, asynchronous: bool):
        makers = [functools.partial(guarded, make, index, os.getpid()) for index in range(count)]
        if asynchronous:
            # A fork of this process would copy JAX's threads in the middle of whatever they do. What every
            # worker imports is imported once, by the server that they are forked from.
            multiprocessing.set_forkserver_preload(["__main__", "surefoot.sources.guard", "gymnasium.vector"])
            self._vector: Any = AsyncVectorEnv(
                makers, copy=False, context="forkserver", autoreset_mode=AutoresetMode.NEXT_STEP
            )
        else:
            self._vector = SyncVectorEnv(makers, copy=False, autoreset_mode=AutoresetMode.NEXT_STEP)
        self.observation_space = self._vector.single_observation_space
        self.action_space = self._vector.single_action_space
        self._asynchronous = asynchronous
        self._choices = choices(self.action_space)
        self._masked = False
        self._actions: np.ndarray | None = None

    def reset(self, seeds: list[int]) -> Observed:
        """Start every environment from its own seed."""
        observation, info = self._called(self._vector.reset, seed=seeds)
        self._masked = self._choices is not None and "action_mask" in info
        return Observed(observation, self._mask(info))

    def send(self, actions: np.ndarray) -> None:
        """Begin to step every environment; one whose episode has just ended is reset instead."""
        if self._asynchronous:
            self._called(self._vector.step_async, actions)
        else:
            self._actions = actions

    def receive(self) -> Stepped:
        """What that step gave. The observations are overwritten by the next one."""
        waiting = self._vector.step_wait if self._asynchronous else functools.partial(self._vector.step, self._actions)
        observation, reward, terminated, truncated, info = self._called(waiting)
        return Stepped(Observed(observation, self._mask(info)), reward, terminated, truncated)

    def close(self) -> None:
        """Let the environments go, also those whose process is gone already."""
        with contextlib.suppress(Exception):
            self._called(self._vector.close, **({"terminate": True} if self._asynchronous else {}))
        self._vector.closed = True  # or Gymnasium tries again, and complains, when it is collected

    def _called(self, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        if not self._asynchronous:
            return function(*arguments, **options)
        try:
            # Gymnasium prints a worker's traceback as warnings; the fault that it raises says it in a line.
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return function(*arguments, **options)
        except (EOFError, OSError) as error:
            sentinels = [process.sentinel for process in self._vector.processes]
            gone = multiprocessing.connection.wait(sentinels, timeout=1)
            who = f"environment {sentinels.index(gone[0])}" if gone else "an environment"
            raise EnvironmentFault(f"{who} lost its worker process: {line(error)}") from error

    def _mask(self, info: dict[str, Any]) -> np.ndarray | None:
        if not self._masked:
            return None
        assert self._choices is not None
        allowed = np.ones((self._vector.num_envs, self._choices), bool)
        if "action_mask" in info:
            given = info["_action_mask"]
            allowed[given] = info["action_mask"][given]
        return allowed
