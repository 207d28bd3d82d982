"""Around each Gymnasium environment: faults that say which, observations of the right shape, and quiet."""

from __future__ import annotations

import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from surefoot.errors import EnvironmentFault

_NOISE = b"WARNING: compiler attribute"


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
    return " ".join(f"{type(error).__name__}: {error}".split())


class Guarded(gymnasium.Wrapper):
    """Turns whatever the environment raises, or returns out of shape, into an EnvironmentFault with its index.

    Of `info` only the action mask is passed on, so that nothing else in it costs time or can do harm.
    """

    def __init__(self, env: gymnasium.Env, index: int):
        super().__init__(env)
        self._index = index
        self._choices = choices(env.action_space)

    def reset(self, **options: Any) -> Any:
        """As the environment's own, or EnvironmentFault."""
        try:
            observation, info = self.env.reset(**options)
        except Exception as error:
            raise self._fault(f"raised in reset: {line(error)}") from error
        return self._match(observation, self.observation_space, "observation"), self._mask(info)

    def step(self, action: Any) -> Any:
        """As the environment's own, or EnvironmentFault."""
        try:
            observation, reward, terminated, truncated, info = self.env.step(action)
        except Exception as error:
            raise self._fault(f"raised in step: {line(error)}") from error
        array = np.asarray(reward)
        if array.size != 1:
            raise self._fault(f"returned a reward of shape {array.shape}, not a number")
        try:
            number = float(array.item())
        except (TypeError, ValueError):
            raise self._fault(f"returned reward {reward!r}, which is not a number") from None
        observation = self._match(observation, self.observation_space, "observation")
        return observation, number, bool(terminated), bool(truncated), self._mask(info)

    def _fault(self, what: str) -> EnvironmentFault:
        return EnvironmentFault(" ".join(f"environment {self._index} {what}".split()))

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
            array = np.asarray(value)
        except ValueError:
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
