"""Gymnasium environments, stepped in this process or in one process each."""

from __future__ import annotations

import functools
import importlib
import os
import time
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv

from surefoot import config
from surefoot.errors import EnvironmentFault, EnvironmentNotFound, SurefootError, did_you_mean
from surefoot.sources.guard import Guarded, quiet
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


def environment_name(environment: str | Callable[[], Any]) -> str:
    """The environment as the command line would name it."""
    if isinstance(environment, str):
        return environment
    return f"{environment.__module__}:{getattr(environment, '__qualname__', type(environment).__qualname__)}"


def maker(environment: str | Callable[[], Any], **options: Any) -> Callable[[], gymnasium.Env]:
    """A function without arguments that makes one environment, with `options` such as render_mode.

    `environment` is a Gymnasium id, `package.module:callable`, or a callable that returns an environment.
    Raises EnvironmentNotFound at once where there is no such environment.
    """
    if callable(environment):
        return functools.partial(_call, environment, environment_name(environment), options)
    module_name, colon, attribute = environment.partition(":")
    if colon:
        try:
            module = importlib.import_module(module_name)
        except ImportError as error:
            raise EnvironmentNotFound(
                f"environment {environment!r}: module {module_name!r} cannot be imported ({error}); "
                "write a Gymnasium id or package.module:callable"
            ) from error
        function = getattr(module, attribute, None)
        if callable(function):
            return functools.partial(_call, function, environment, options)
    make = functools.partial(gymnasium.make, environment, disable_env_checker=True, **options)
    try:
        gymnasium.spec(environment)
    except gymnasium.error.Error as error:
        known = [name for name in gymnasium.registry if "/" not in name]
        near = did_you_mean(environment, known) or "; `CartPole-v1` is one to start with"
        raise EnvironmentNotFound(f"environment {environment!r} is not known to Gymnasium{near}") from error
    return functools.partial(_make, make, environment)


def _make(make: Callable[[], gymnasium.Env], name: str) -> gymnasium.Env:
    try:
        with quiet():
            return make()
    except gymnasium.error.DeprecatedEnv as error:
        raise EnvironmentNotFound(f"environment {name!r} cannot be made: {_line(error)}") from error
    except Exception as error:
        raise EnvironmentFault(f"environment {name!r} cannot be made: {_line(error)}") from error


def _call(function: Callable[..., Any], name: str, options: dict[str, Any]) -> gymnasium.Env:
    try:
        with quiet():
            made = function(**options)
    except SurefootError:
        raise
    except Exception as error:
        raise EnvironmentFault(f"environment {name!r} cannot be made: {_line(error)}") from error
    if not isinstance(made, gymnasium.Env):
        raise EnvironmentNotFound(
            f"environment {name!r} returned a {type(made).__name__}; it must return a gymnasium.Env"
        )
    return made


def _line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


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
        makers = [functools.partial(_guarded, make, index) for index in range(count)]
        if asynchronous:
            # A fork of this process would copy JAX's threads in the middle of whatever they do.
            self._vector: Any = AsyncVectorEnv(
                makers, copy=False, context="forkserver", autoreset_mode=AutoresetMode.NEXT_STEP
            )
        else:
            self._vector = SyncVectorEnv(makers, copy=False, autoreset_mode=AutoresetMode.NEXT_STEP)
        self.observation_space = self._vector.single_observation_space
        self.action_space = self._vector.single_action_space
        self._choices = _choices(self.action_space)
        self._masked = False

    def reset(self, seeds: list[int]) -> Observed:
        """Start every environment from its own seed."""
        observation, info = self._vector.reset(seed=seeds)
        self._masked = self._choices is not None and "action_mask" in info
        return Observed(observation, self._mask(info))

    def step(self, actions: np.ndarray) -> Stepped:
        """Step every environment; one whose episode has just ended is reset instead."""
        observation, reward, terminated, truncated, info = self._vector.step(actions)
        return Stepped(Observed(observation, self._mask(info)), reward, terminated, truncated)

    def close(self) -> None:
        """Let the environments go."""
        self._vector.close()

    def _mask(self, info: dict[str, Any]) -> np.ndarray | None:
        if not self._masked:
            return None
        assert self._choices is not None
        allowed = np.ones((self._vector.num_envs, self._choices), bool)
        if "action_mask" not in info:
            return allowed
        masks, given = info["action_mask"], info.get("_action_mask", np.ones(len(allowed), bool))
        for index in np.flatnonzero(given):
            if np.shape(masks[index]) != (self._choices,):
                raise EnvironmentFault(
                    f"environment {index} gave an action_mask of shape {np.shape(masks[index])}, "
                    f"but {self._choices} actions can be masked"
                )
        allowed[given] = np.asarray(masks[given]).astype(bool).reshape(-1, self._choices)
        return allowed


def _choices(space: gymnasium.Space) -> int | None:
    """How many entries an action mask has; None where the space takes none."""
    if isinstance(space, spaces.Discrete):
        return int(space.n)
    return int(np.sum(space.nvec)) if isinstance(space, spaces.MultiDiscrete) else None


def _guarded(make: Callable[[], gymnasium.Env], index: int) -> gymnasium.Env:
    return Guarded(make(), index)
