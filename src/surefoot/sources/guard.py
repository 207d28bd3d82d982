"""Around each Gymnasium environment: faults that say which environment, observations of the right shape, quiet."""

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


class Guarded(gymnasium.Wrapper):
    """Turns whatever the environment raises into an EnvironmentFault that names its index."""

    def __init__(self, env: gymnasium.Env, index: int):
        super().__init__(env)
        self._index = index

    def reset(self, **options: Any) -> Any:
        """As the environment's own, or EnvironmentFault."""
        try:
            observation, info = self.env.reset(**options)
        except Exception as error:
            raise EnvironmentFault(f"environment {self._index} raised in reset: {_line(error)}") from error
        return self._shaped(observation), info

    def step(self, action: Any) -> Any:
        """As the environment's own, or EnvironmentFault."""
        try:
            observation, reward, terminated, truncated, info = self.env.step(action)
        except Exception as error:
            raise EnvironmentFault(f"environment {self._index} raised in step: {_line(error)}") from error
        number = np.asarray(reward)
        if number.size != 1:
            raise EnvironmentFault(f"environment {self._index} gave a reward of shape {number.shape}, not a number")
        return self._shaped(observation), float(number.item()), bool(terminated), bool(truncated), info

    def _shaped(self, observation: Any) -> Any:
        return _match(observation, self.observation_space, self._index, "observation")


def _line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


def _match(value: Any, space: Any, index: int, where: str) -> Any:
    """`value` as `space` lays it out: plain dicts and tuples of arrays. Raises EnvironmentFault."""
    if isinstance(space, spaces.Dict):
        if not isinstance(value, dict) or set(value) != set(space.spaces):
            raise EnvironmentFault(f"environment {index} gave an {where} that has not the keys {sorted(space.spaces)}")
        return {key: _match(value[key], sub, index, f"{where}[{key!r}]") for key, sub in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        if not isinstance(value, (tuple, list)) or len(value) != len(space.spaces):
            raise EnvironmentFault(f"environment {index} gave an {where} that has not {len(space.spaces)} parts")
        return tuple(
            _match(v, sub, index, f"{where}[{i}]") for i, (v, sub) in enumerate(zip(value, space, strict=True))
        )
    if np.shape(value) != space.shape:
        raise EnvironmentFault(
            f"environment {index} gave an {where} of shape {np.shape(value)}, but its space says {space.shape}"
        )
    return value
