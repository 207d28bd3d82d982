"""Around each Gymnasium environment: faults that say which, observations of the right shape, and quiet."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from surefoot.errors import EnvironmentFault
from surefoot.sources.watch import Overdue, Watch

_NOISE = b"WARNING: compiler attribute"
_LONGEST_LINE = 500
_STEP = "observation, reward, terminated, truncated and info"
_OLD = "an environment of the old Gym must be adapted to gymnasium.Env first"


@contextmanager
def quiet() -> Iterator[None]:
    """Keep back what Gymnasium and MuJoCo warn of while an environment is made.

    MuJoCo's compiler writes past Python, straight to file descriptor 2; what anything else writes there
    is passed on.
    """
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        os.dup2(file.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(kept, 2)
            os.close(kept)
            file.seek(0)
            lines = file.read().splitlines(keepends=True)
            noisy = any(line.startswith(_NOISE) for line in lines)
            for line in lines:
                if not line.startswith(_NOISE) and (line.strip() or not noisy):
                    os.write(2, line)


def choices(space: gymnasium.Space) -> int | None:
    """How many entries an action mask has; None where the space takes none."""
    if isinstance(space, spaces.Discrete):
        return int(space.n)
    return int(np.sum(space.nvec)) if isinstance(space, spaces.MultiDiscrete) else None


def line(error: BaseException) -> str:
    """An exception in one line: its type and what it says."""
    return shortened(f"{type(error).__name__}: {error}")


def shortened(text: str) -> str:
    """Text in one line of bearable length."""
    text = " ".join(text.split())
    return text if len(text) <= _LONGEST_LINE else f"{text[:_LONGEST_LINE]}…"


def of_the_environment(error: BaseException) -> bool:
    """Whether an exception that passed through an environment's code is its own fault.

    Ctrl-C is not, nor what a signal's handler raised while that code happened to run. SystemExit and the like are:
    no environment may end the process that trains in it.
    """
    if isinstance(error, (Exception, Overdue)):
        return True
    if isinstance(error, KeyboardInterrupt):
        return False
    handlers = {getattr(signal.getsignal(number), "__code__", None) for number in signal.valid_signals()}
    return not any(frame.f_code in handlers for frame, _ in traceback.walk_tb(error.__traceback__))


class Guarded(gymnasium.Wrapper):
    """Turns whatever the environment raises, or returns out of shape, into an EnvironmentFault with its index.

    A call that takes longer than `watch` allows is a fault too, while the watch is on. What is returned is copied,
    so the environment may do with its own arrays what it likes. Of `info` only the action mask is passed on, so
    that nothing else in it costs time or can do harm. What `close` raises is dropped: nothing hangs on it any more.
    """

    def __init__(self, env: gymnasium.Env, index: int, watch: Watch):
        super().__init__(env)
        self._index = index
        self._watch = watch
        self._choices = choices(env.action_space)

    def reset(self, **options: Any) -> Any:
        """As the environment's own, or EnvironmentFault."""
        returned = self._called("reset", self.env.reset, **options)
        if not isinstance(returned, (tuple, list)) or len(returned) != 2 or not isinstance(returned[1], dict):
            raise self._fault(
                f"returned {_kind(returned)} from reset, where observation and info (a dictionary) are wanted; {_OLD}"
            )
        return self._match(returned[0], self.observation_space, "observation"), self._mask(returned[1])

    def step(self, action: Any) -> Any:
        """As the environment's own, or EnvironmentFault."""
        returned = self._called("step", self.env.step, action)
        if not isinstance(returned, (tuple, list)) or len(returned) != 5:
            raise self._fault(f"returned {_kind(returned)} from step, where {_STEP} are wanted; {_OLD}")
        observation, reward, terminated, truncated, info = returned
        number = self._number(reward)
        observation = self._match(observation, self.observation_space, "observation")
        terminated, truncated = self._flag(terminated, "terminated"), self._flag(truncated, "truncated")
        return observation, number, terminated, truncated, self._mask(info)

    def close(self) -> None:
        """As the environment's own, whatever that raises."""
        with contextlib.suppress(EnvironmentFault):
            self._called("close", self.env.close)

    def _called(self, what: str, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        self._watch.begin()
        try:
            return function(*arguments, **options)
        except BaseException as error:
            if not of_the_environment(error):
                raise
            if isinstance(error, Overdue):
                raise self._fault(overdue(what, self._watch.seconds)) from None
            raise self._fault(f"raised in {what}: {line(error)}") from error
        finally:
            self._watch.end()

    def _fault(self, what: str) -> EnvironmentFault:
        return EnvironmentFault(shortened(f"environment {self._index} {what}"))

    def _number(self, reward: Any) -> float:
        """A float, whole number, bool, or array of one of these, as a float."""
        if type(reward) is float:
            return reward
        try:
            array = np.asarray(reward)
            if array.size != 1:
                raise self._fault(f"returned a reward of shape {array.shape}, not a number")
            if array.dtype.kind in "biufO" and not isinstance(array.item(), (str, bytes)):
                return float(array.item())
        except (TypeError, ValueError, OverflowError):
            pass
        raise self._fault(f"returned reward {reward!r}, which is not a number")

    def _flag(self, value: Any, name: str) -> bool:
        """A bool, 0 or 1, or an array of one of these, as a bool."""
        if type(value) is bool:
            return value
        try:
            array = np.asarray(value)
            if array.size == 1 and array.dtype.kind in "biuf" and array.item() in (0, 1):
                return bool(array.item())
        except ValueError:
            pass
        raise self._fault(f"returned {name} {value!r}, which is neither True nor False")

    def _mask(self, info: Any) -> dict[str, np.ndarray]:
        if not isinstance(info, dict):
            raise self._fault(f"returned info {info!r}, which is not a dictionary")
        if self._choices is None or "action_mask" not in info:
            return {}
        try:
            mask = np.asarray(info["action_mask"]).astype(bool)
        except (TypeError, ValueError):
            raise self._fault(f"returned action_mask {info['action_mask']!r}, which is no array") from None
        if mask.shape != (self._choices,):
            raise self._fault(f"returned action_mask of shape {mask.shape}, but {self._choices} actions can be masked")
        return {"action_mask": mask}

    def _match(self, value: Any, space: Any, where: str) -> Any:
        """`value` as `space` lays it out: plain dicts and tuples of arrays."""
        if isinstance(space, spaces.Dict):
            if not isinstance(value, dict) or set(value) != set(space.spaces):
                raise self._fault(f"returned an {where} that has not the keys {sorted(space.spaces)}")
            return {key: self._match(value[key], sub, f"{where}[{key!r}]") for key, sub in space.spaces.items()}
        if isinstance(space, spaces.Tuple):
            if not isinstance(value, (tuple, list)) or len(value) != len(space.spaces):
                raise self._fault(f"returned an {where} that has not {len(space.spaces)} parts")
            parts = zip(value, space.spaces, strict=True)
            return tuple(self._match(part, sub, f"{where}[{i}]") for i, (part, sub) in enumerate(parts))
        try:
            array = np.array(value)  # a copy: environments may share one buffer
        except (TypeError, ValueError):
            raise self._fault(f"returned {where} {value!r}, which is no array") from None
        if array.shape != space.shape:
            raise self._fault(f"returned {where} of shape {array.shape}, but its space says {space.shape}")
        if array.dtype.kind not in "biuf":
            raise self._fault(f"returned {where} {value!r}, which is not a number")
        if space.dtype.kind in "iu" and array.dtype != space.dtype and array.dtype.kind != "b":
            # The vector environment's buffers would refuse fractions and wrap what is too large.
            limits = np.iinfo(space.dtype)
            whole = array.dtype.kind != "f" or bool(np.all(array == np.floor(array)))
            if not whole or not np.all((array >= limits.min) & (array <= limits.max)):
                raise self._fault(f"returned {where} {value!r}, which is no {space.dtype}")
            array = array.astype(space.dtype)
        return array


def overdue(what: str, seconds: float | None) -> str:
    """What a fault says of a call that did not come back."""
    return f"has not come back from {what} after {seconds:g} s; raise step_seconds if it may take longer"


def _kind(returned: Any) -> str:
    if isinstance(returned, (tuple, list)):
        return f"{len(returned)} values"
    return "None" if returned is None else f"a {type(returned).__name__}"
