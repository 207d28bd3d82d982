"""Environments whose observations and rewards give mistakes away.

Every probe is a class or function of this module and takes plain arguments, so `probes:Counter` names one
and `functools.partial(probes.Counter, ...)` travels to a worker process. None knows anything of surefoot.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections import OrderedDict
from collections.abc import Callable
from copy import deepcopy
from typing import Any, NamedTuple

import gymnasium
import numpy as np
from gymnasium import spaces

import rogues

INF = np.inf


def numbers(width: int) -> spaces.Box:
    """Unbounded float32 vectors."""
    return spaces.Box(-INF, INF, (width,), np.float32)


OBSERVATIONS: dict[str, spaces.Space] = {
    "box": numbers(3),
    "box float64": spaces.Box(-5.0, 5.0, (2,), np.float64),
    "box bytes": spaces.Box(0, 255, (4,), np.uint8),
    "scalar": spaces.Box(-1.0, 1.0, (), np.float32),
    "half-bounded": spaces.Box(np.array([0, -INF], np.float32), np.array([INF, 1], np.float32)),
    "discrete": spaces.Discrete(5, start=-2),
    "multidiscrete": spaces.MultiDiscrete([[2, 3], [4, 2]], start=[[1, 0], [-1, 5]]),
    "multibinary": spaces.MultiBinary((2, 2)),
    "dict": spaces.Dict(
        OrderedDict(
            z=numbers(2),
            a=spaces.Discrete(3, start=1),
            m=spaces.Dict(OrderedDict(y=spaces.MultiBinary(3), b=spaces.Box(-1.0, 2.0, (), np.float32))),
        )
    ),
    "image": spaces.Box(0, 1, (5, 6, 2), bool),
    "image of bytes": spaces.Box(0, 255, (3, 7, 6), np.uint8),
    "image without bounds": spaces.Box(-INF, INF, (5, 5, 1), np.float32),
    "tuple": spaces.Tuple([numbers(1), spaces.Tuple([spaces.Discrete(2), spaces.MultiDiscrete([3, 2])])]),
}

ACTIONS: dict[str, spaces.Space] = {
    "discrete": spaces.Discrete(3, start=-1),
    "multidiscrete": spaces.MultiDiscrete([3, 2, 4], start=[0, 5, -1]),
    "multidiscrete (2, 2)": spaces.MultiDiscrete([[2, 3], [4, 2]]),
    "multibinary": spaces.MultiBinary(4),
    "box": spaces.Box(-1.0, 1.0, (2,), np.float32),
    "unbounded": numbers(2),
    "asymmetric": spaces.Box(np.array([-1, 10], np.float32), np.array([3, 11], np.float32)),
    "half-bounded": spaces.Box(np.array([0.25, -INF], np.float32), np.array([INF, 0.5], np.float32)),
    # One of each kind of bound, in an order of its own.
    "mixed (2, 2)": spaces.Box(np.array([[-2, 0], [-INF, -INF]]), np.array([[6, INF], [1, INF]]), dtype=np.float64),
}


class Counter(gymnasium.Env):
    """Counts: shows (steps since reset, episodes since seeding, which end this episode has, 1 if this is the end).

    The episodes end in the ways of `ends`, a cycle of ("terminated" | "truncated" | "both", length) that begins
    at the seed's place in it, so neighbours end at different times. The reward is ten times the number of steps
    shown when the action was taken, plus the action as given.
    """

    ENDS = (("terminated", 3), ("truncated", 5), ("terminated", 1), ("both", 2), ("truncated", 1))

    def __init__(self, ends: tuple[tuple[str, int], ...] = ENDS):
        self.observation_space = numbers(4)
        self.action_space = spaces.Discrete(3)
        self._ends = ends

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        if seed is not None:
            self._episode, self._which = -1, seed - 1
        self._episode, self._which = self._episode + 1, (self._which + 1) % len(self._ends)
        self._time = 0
        return self._show(False), {}

    def step(self, action: int) -> Any:
        reward = 10.0 * self._time + float(action)
        self._time += 1
        kind, length = self._ends[self._which]
        over = self._time >= length
        return self._show(over), reward, over and kind != "truncated", over and kind != "terminated", {}

    def _show(self, over: bool) -> np.ndarray:
        return np.array([self._time, self._episode, self._which, over], np.float32)


class Zoo(gymnasium.Env):
    """Shows an observation of each of `kinds`, drawn from `np_random`, and under "given" the last action as it came.

    It refuses an action outside its action space, so one that was not mapped or clipped does not pass.
    """

    def __init__(self, action_space: spaces.Space, kinds: tuple[str, ...] = tuple(OBSERVATIONS), length: int = 6):
        self.action_space = deepcopy(action_space)
        self._animals = spaces.Dict({kind: deepcopy(OBSERVATIONS[kind]) for kind in kinds})
        self.observation_space = spaces.Dict(
            {**self._animals.spaces, "given": numbers(int(np.prod(action_space.shape)))}
        )
        self._length = length

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self._time = 0
        return self._show(np.zeros(self.observation_space["given"].shape)), {}

    def step(self, action: Any) -> Any:
        if not self.action_space.contains(action):
            raise ValueError(f"action {action!r} is outside {self.action_space}")
        self._time += 1
        reward = float(self.np_random.normal())
        over = bool(self.np_random.random() < 0.1)
        return self._show(np.ravel(action)), reward, over, self._time >= self._length, {}

    def _show(self, given: np.ndarray) -> dict[str, Any]:
        self._animals.seed(int(self.np_random.integers(2**31)))
        return {**self._animals.sample(), "given": given.astype(np.float32)}


class Noise(gymnasium.Env):
    """Shows two numbers from `np_random`, far from 0 and far from unit scale; no action matters."""

    def __init__(self, length: int = 7):
        self.observation_space = numbers(2)
        self.action_space = spaces.Box(-1.0, 1.0, (1,), np.float32)
        self._length = length

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self._time = 0
        return self._show(), {}

    def step(self, action: Any) -> Any:
        self._time += 1
        return self._show(), float(self.np_random.normal()), False, self._time >= self._length, {}

    def _show(self) -> np.ndarray:
        return (np.array([1000, -3]) + [50, 0.01] * self.np_random.normal(size=2)).astype(np.float32)


class Strict(gymnasium.Env):
    """Refuses an action outside its action space, whatever that is; shows nothing but 0."""

    def __init__(self, action_space: spaces.Space):
        self.observation_space = numbers(1)
        self.action_space = deepcopy(action_space)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> Any:
        if not self.action_space.contains(action):
            raise ValueError(f"action {action!r} is outside {self.action_space}")
        return np.zeros(1, np.float32), 0.0, False, False, {}


class Masked(gymnasium.Env):
    """Shows which choices are allowed, gives the same as `info["action_mask"]`, and refuses all others.

    `listed` gives the mask as a Python list; `closed` allows nothing once an episode is over, as board
    games do.
    """

    DISCRETE = spaces.Discrete(4, start=2)
    MULTIDISCRETE = spaces.MultiDiscrete([2, 3, 4])

    def __init__(self, action_space: spaces.Space = DISCRETE, *, listed: bool = False, closed: bool = False):
        self.action_space = deepcopy(action_space)
        discrete = isinstance(action_space, spaces.Discrete)
        self._sizes = [int(action_space.n)] if discrete else [int(n) for n in action_space.nvec]
        self._start = np.reshape(action_space.start, -1)
        self.observation_space = spaces.MultiBinary(sum(self._sizes))
        self._listed, self._closed = listed, closed

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self._time = 0
        return self._show(over=False)

    def step(self, action: Any) -> Any:
        bounds = np.cumsum([0, *self._sizes[:-1]])
        if not self._allowed[bounds + np.reshape(action, -1) - self._start].all():
            raise ValueError(f"action {action} is forbidden: {self._allowed}")
        self._time += 1
        over = self._time == 5
        observation, info = self._show(over=over)
        return observation, 1.0, over, False, info

    def _show(self, over: bool) -> Any:
        blocks = []
        for size in self._sizes:
            block = self.np_random.random(size) < 0.4
            block[self.np_random.integers(size)] = True
            blocks.append(block)
        self._allowed = np.concatenate(blocks) & (not (over and self._closed))
        mask = self._allowed.astype(np.int8)
        return mask.copy(), {"action_mask": mask.tolist() if self._listed else mask}


class Lifetime(gymnasium.Env):
    """Shows how often it was reset since it was made: something that seeding does not set back."""

    def __init__(self, length: int = 3):
        self.observation_space = numbers(1)
        self.action_space = spaces.Discrete(2)
        self._resets, self._length = 0, length

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self._resets, self._time = self._resets + 1, 0
        return np.full(1, self._resets, np.float32), {}

    def step(self, action: Any) -> Any:
        self._time += 1
        return np.full(1, self._resets, np.float32), 1.0, self._time >= self._length, False, {}


class Irreproducible(Noise):
    """Noise that takes no notice of its seed."""

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        return super().reset(seed=int(np.random.default_rng().integers(2**31)))


class Chatty(Strict):
    """Tells in `info` what no two environments tell alike."""

    def __init__(self):
        super().__init__(spaces.Discrete(2))

    def step(self, action: Any) -> Any:
        observation, *rest, _ = super().step(action)
        seen = np.zeros(int(self.np_random.integers(5)))
        return observation, *rest, {"seen": seen, "note": {"deep": seen.tolist()}, "final_obs": 3, "_seen": "x"}


class Imports(Strict):
    """Shows 1 where its process has imported JAX, else 0."""

    def __init__(self):
        super().__init__(spaces.Discrete(2))

    def step(self, action: Any) -> Any:
        return np.full(1, "jax" in sys.modules, np.float32), 0.0, False, False, {}


class Dying(Strict):
    """Ends its whole process at its third step."""

    def __init__(self):
        super().__init__(spaces.Discrete(2))
        self._steps = 0

    def step(self, action: Any) -> Any:
        self._steps += 1
        if self._steps == 3:
            os._exit(3)
        return super().step(action)


class Lengths(gymnasium.Env):
    """Episodes of the given lengths in turn, or of a length drawn from them; the return is the length."""

    def __init__(self, lengths: tuple[int, ...], *, drawn: bool = False):
        self.observation_space = numbers(1)
        self.action_space = spaces.Discrete(2)
        self._lengths, self._drawn = lengths, drawn
        self._episode = -1

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self._episode, self._time = self._episode + 1, 0
        which = self.np_random.integers(len(self._lengths)) if self._drawn else self._episode % len(self._lengths)
        self._length = self._lengths[which]
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> Any:
        self._time += 1
        return np.zeros(1, np.float32), 1.0, self._time >= self._length, False, {}


class Step(NamedTuple):
    """What a step returns."""

    observation: Any
    reward: Any
    terminated: Any
    truncated: Any
    info: Any


def _raise(error: BaseException) -> Any:
    raise error


def _shown(step: Step, **parts: Any) -> Step:
    return step._replace(observation={**step.observation, **parts})


FAULTS: dict[str, Callable[[Step], Any]] = {
    "nan observation": lambda step: _shown(step, box=np.array([0, np.nan], np.float32)),
    "infinite observation": lambda step: _shown(step, box=np.array([-np.inf, 0], np.float32)),
    "observation beyond float32": lambda step: _shown(step, wide=np.array([1e39])),
    "observation of a wrong shape": lambda step: _shown(step, box=np.zeros(3, np.float32)),
    "observation without a key": lambda step: step._replace(observation={"box": step.observation["box"]}),
    "observation that is no number": lambda step: _shown(step, which="three"),
    "observation that is nothing": lambda step: _shown(step, which=None),
    "observation between two choices": lambda step: _shown(step, which=1.5),
    "observation outside its space": lambda step: _shown(step, which=4),
    "nan reward": lambda step: step._replace(reward=np.nan),
    "infinite reward": lambda step: step._replace(reward=-np.inf),
    "reward beyond float32": lambda step: step._replace(reward=1e39),
    "reward of a wrong shape": lambda step: step._replace(reward=np.zeros(2)),
    "reward that is nothing": lambda step: step._replace(reward=None),
    "nothing allowed": lambda step: step._replace(info={"action_mask": np.zeros(3, np.int8)}),
    "mask of a wrong shape": lambda step: step._replace(info={"action_mask": np.ones(4, np.int8)}),
    "info that is nothing": lambda step: step._replace(info=None),
    "four values": lambda step: tuple(step)[:4],
    "large reward": lambda step: step._replace(reward=1e25),
    "reward that is text": lambda step: step._replace(reward="1"),
    "end that is nothing": lambda step: step._replace(terminated=None),
    "end that is text": lambda step: step._replace(truncated="False"),
    "ends the process": lambda step: sys.exit(3),
    "raises no Exception": lambda step: _raise(BaseException("the probe\nfailed on purpose")),
    "hangs": lambda step: rogues.sleep_for_ever(),
    "hangs and swallows": lambda step: rogues.swallow_for_ever(),
    "raises": lambda step: _raise(ZeroDivisionError("the probe\nfailed on purpose")),
    "raises in reset": lambda step: step._replace(terminated=True),  # and then reset raises
}


class Faulty(gymnasium.Env):
    """Works until its step number `at` (the first is 0), which goes wrong as FAULTS[fault] has it.

    It has every kind of space that a fault needs, so all faults run through the same compiled programs. With
    `at` -1 it is the first observation that goes wrong. `chosen` may say of an environment that it stays well.
    """

    def __init__(self, fault: str, at: int, chosen: Callable[[Any], bool] | None = None):
        self.observation_space = spaces.Dict(
            {"box": numbers(2), "which": spaces.Discrete(3, start=1), "wide": spaces.Box(-INF, INF, (1,), np.float64)}
        )
        self.action_space = spaces.Discrete(3)
        self._fault, self._at, self._chosen, self._steps = fault, at, chosen, 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        step = self._healthy()
        if self._fault == "raises in reset" and self._steps > self._at and self._ill():
            raise ZeroDivisionError("the probe\nfailed on purpose")
        return (FAULTS[self._fault](step) if self._at < 0 and self._ill() else step).observation, step.info

    def step(self, action: Any) -> Any:
        number, self._steps = self._steps, self._steps + 1
        step = self._healthy()._replace(truncated=self._steps % 40 == 0)
        return FAULTS[self._fault](step) if number == self._at and self._ill() else step

    def _ill(self) -> bool:
        return self._chosen is None or self._chosen(self)

    def _healthy(self) -> Step:
        box = self.np_random.normal(size=2).astype(np.float32)
        observation = {"box": box, "which": int(self.np_random.integers(1, 4)), "wide": np.zeros(1)}
        return Step(observation, 1.0, False, False, {"action_mask": np.ones(3, np.int8)})


class NewestIsFaulty:
    """Makes Faulty environments of which only the one made last goes wrong: of N, the one with index N - 1."""

    def __init__(self, fault: str, at: int):
        self._fault, self._at = fault, at

    def __call__(self) -> gymnasium.Env:
        self._newest = Faulty(self._fault, self._at, lambda env: env is self._newest)
        return self._newest


class Forbidding(gymnasium.Wrapper):
    """Refuses the actions that the last `info["action_mask"]` did not allow."""

    def reset(self, **options: Any) -> Any:
        observation, info = self.env.reset(**options)
        self._allowed = info["action_mask"]
        return observation, info

    def step(self, action: Any) -> Any:
        if not self._allowed[action]:
            raise ValueError(f"action {action} is forbidden: {self._allowed}")
        observation, reward, terminated, truncated, info = self.env.step(action)
        self._allowed = info["action_mask"]
        return observation, reward, terminated, truncated, info


def strict_taxi(**options: Any) -> gymnasium.Env:
    """Taxi that refuses every action its mask forbids."""
    return Forbidding(gymnasium.make("Taxi-v4", **options))


def no_environment() -> str:
    """A function that returns no environment."""
    return "CartPole-v1"


def raising() -> gymnasium.Env:
    """A function that fails."""
    raise ZeroDivisionError("the probe\nfailed on purpose")


class Once(Noise):
    """Noise that at its `step`-th step since it was made goes wrong in a way, where the file `flag` is not yet."""

    def __init__(self, way: str, step: int, flag: str):
        super().__init__()
        self._way, self._left, self._flag = way, step, flag

    def step(self, action: Any) -> Any:
        self._left -= 1
        if not self._left and self._first():
            if self._way == "dies":
                os.kill(os.getpid(), signal.SIGKILL)
            elif self._way == "hangs":
                time.sleep(1000)
            elif self._way == "raises":
                raise RuntimeError("the licence server did not answer")
            else:
                return super().step(action)[0], float("nan"), False, False, {}
        return super().step(action)

    def _first(self) -> bool:
        try:
            os.close(os.open(self._flag, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return False
        return True


class OnceIrreproducible(Once, Irreproducible):
    """As Once, but that it takes no notice of its seed."""


class Slow(Noise):
    """Noise each of whose steps takes some milliseconds: in the process that first took the file `flag`, or in all."""

    def __init__(self, milliseconds: float, flag: str | None = None):
        super().__init__()
        self._seconds = milliseconds / 1000 * (flag is None or first_process(flag))

    def step(self, action: Any) -> Any:
        time.sleep(self._seconds)
        return super().step(action)


class SlowLengths(Lengths):
    """Lengths whose steps take some milliseconds in the process that first took the file `flag`."""

    def __init__(self, lengths: tuple[int, ...], milliseconds: float, flag: str):
        super().__init__(lengths)
        self._seconds = milliseconds / 1000 * first_process(flag)

    def step(self, action: Any) -> Any:
        time.sleep(self._seconds)
        return super().step(action)


def first_process(flag: str) -> bool:
    """Whether this process was the first to ask, of all that name the file."""
    mine = str(os.getpid())
    try:
        with open(flag, "x") as file:
            file.write(mine)
    except FileExistsError:
        with open(flag) as file:
            return file.read() == mine
    return True
