"""Environments that do what no environment should. Like those of `probes`, none knows anything of surefoot."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable
from copy import deepcopy
from typing import Any, NoReturn

import gymnasium
import numpy as np
from gymnasium import spaces


class Polite(gymnasium.Env):
    """Shows two numbers from `np_random`; the reward is the action's sum; episodes of seven steps."""

    def __init__(self, action_space: spaces.Space | None = None):
        self.observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)
        self.action_space = deepcopy(action_space) or spaces.Box(-1.0, 1.0, (2,), np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self._time = 0
        return self._show(), {}

    def step(self, action: Any) -> Any:
        self._time += 1
        return self._show(), float(np.sum(action)), False, self._time >= 7, {}

    def _show(self) -> np.ndarray:
        return self.np_random.normal(size=2).astype(np.float32)


class Scribbling(Polite):
    """Overwrites the action that it was given and what it showed before, in a buffer that all copies share."""

    buffer = np.zeros(2, np.float32)

    def step(self, action: Any) -> Any:
        stepped = super().step(action)
        action[...] = 99.0
        return stepped

    def _show(self) -> np.ndarray:
        self.buffer[...] = super()._show()
        return self.buffer


class Reseeding(Polite):
    """Seeds every generator that the process shares, and draws from them."""

    def step(self, action: Any) -> Any:
        np.random.seed(3)  # noqa: NPY002 - what it should not do
        np.random.normal(size=5)  # noqa: NPY002
        random.seed(3)
        return super().step(action)


class Printing(Polite):
    """Writes to standard output, by Python and past it, and warns."""

    def step(self, action: Any) -> Any:
        print("by Python")
        os.write(1, b"past Python\n")
        return super().step(action)


class Unclosable(Polite):
    """Fails when it is closed."""

    def close(self) -> None:
        raise ZeroDivisionError("the rogue failed on purpose")


class Endless(Polite):
    """Its first `short` episodes have seven steps; the others never end."""

    def __init__(self, short: int = 0):
        super().__init__()
        self._short, self._episode = short, -1

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self._episode += 1
        return super().reset(seed=seed)

    def step(self, action: Any) -> Any:
        observation, _, terminated, truncated, info = super().step(action)
        return observation, 1.0, terminated, truncated and self._episode < self._short, info


class Rewarding(Polite):
    """Gives the reward that a function of the step in the episode and a generator says."""

    def __init__(self, reward: Callable[[int, np.random.Generator], float]):
        super().__init__()
        self._reward = reward

    def step(self, action: Any) -> Any:
        observation, _, *rest = super().step(action)
        return observation, self._reward(self._time, self.np_random), *rest


def constant(time: int, generator: np.random.Generator) -> float:
    return 1e12


def noise(time: int, generator: np.random.Generator) -> float:
    return 1e12 * generator.normal()


def growing(time: int, generator: np.random.Generator) -> float:
    return 10.0 ** (2 * time)


def largest(time: int, generator: np.random.Generator) -> float:
    return 1e15 * generator.choice([-1, 1])


def sleep_for_ever() -> NoReturn:
    while True:
        time.sleep(0.01)


def swallow_for_ever() -> NoReturn:
    """A hang that whatever is an Exception does not end."""
    while True:
        with contextlib.suppress(Exception):
            sleep_for_ever()


def wait_for_ever() -> NoReturn:
    threading.Event().wait()
    raise AssertionError


def deaf_for_ever() -> NoReturn:
    """A hang that does not listen to being asked to end."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sleep_for_ever()


def kill() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def leave() -> NoReturn:
    sys.exit(3)


def fail() -> NoReturn:
    raise ZeroDivisionError("the rogue failed on purpose")


class Doing(Polite):
    """Does `deed` at its step number `at` (the first is 0, the first reset -1), if seeded with `chosen`."""

    def __init__(self, deed: Callable[[], Any], at: int, chosen: int | None = None):
        super().__init__()
        self._deed, self._at, self._chosen, self._steps, self._seed = deed, at, chosen, -1, None

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self._seed = self._seed if seed is None else seed
        if self._steps < 0:
            self._act()
            self._steps = 0
        return super().reset(seed=seed)

    def step(self, action: Any) -> Any:
        self._act()
        self._steps += 1
        return super().step(action)

    def _act(self) -> None:
        if self._steps == self._at and self._chosen in (None, self._seed):
            self._deed()


class Third:
    """Makes polite environments; the third call does something else."""

    def __init__(self, deed: Callable[[], Any]):
        self._deed, self.made, self.closed = deed, 0, 0

    def __call__(self) -> gymnasium.Env:
        self.made += 1
        return self._deed() if self.made == 3 else Counted(self)


class Counted(Polite):
    """Tells its maker that it was closed."""

    def __init__(self, maker: Third):
        super().__init__()
        self._maker = maker

    def close(self) -> None:
        self._maker.closed += 1


def other_in_a_worker(deed: Callable[[], Any]) -> gymnasium.Env:
    """A polite environment here, and what the deed makes in a process of its own."""
    return Polite() if multiprocessing.parent_process() is None else deed()


def of_other_actions() -> gymnasium.Env:
    return Polite(spaces.Discrete(2))


class Spaceless(gymnasium.Env):
    """Has no action space; what it observes may be given."""

    def __init__(self, observation_space: Any = None):
        self.observation_space = observation_space


class Answering(gymnasium.Env):
    """Returns from reset and step what it was told to."""

    def __init__(self, observation_space: spaces.Space, returned: Any):
        self.observation_space, self.action_space = observation_space, spaces.Discrete(2)
        self._returned = returned

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        return self._returned

    def step(self, action: Any) -> Any:
        return self._returned
