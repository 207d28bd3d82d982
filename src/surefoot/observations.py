"""What an agent is given, checked against its space and laid out as its encoder takes it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np

from surefoot.errors import SettingError, shown
from surefoot.spaces import one_line, unlawful

Reader = Callable[[Any], tuple[Any, int | None]]
"""From an observation to a tree of arrays and the size of its batch, None for a single one."""


def make_reader(space: Any, dtype: np.dtype, name: str = "observation") -> Reader:
    """The reader of a space's observations; Box parts become `dtype`, all others int32.

    Whatever can be known of the space is found out here, once: an agent reads for every action. The reader raises
    SettingError for what does not fit the space, naming the part.
    """
    if isinstance(space, (gymnasium.spaces.Dict, gymnasium.spaces.Tuple)):
        return _composite_reader(space, dtype, name)
    return _plain_reader(space, dtype, name)


def _composite_reader(space: Any, dtype: np.dtype, name: str) -> Reader:
    named = isinstance(space, gymnasium.spaces.Dict)
    subspaces: Any = space.spaces if named else dict(enumerate(space.spaces))
    kind: Any = dict if named else (tuple, list)
    readers = {key: make_reader(sub, dtype, f"{name}[{key!r}]") for key, sub in subspaces.items()}
    keys = readers.keys()

    def read(observation: Any) -> tuple[Any, int | None]:
        if not isinstance(observation, kind) or len(observation) != len(keys):
            raise SettingError(f"{name} must have the parts {list(keys)}, but {type(observation).__name__} came")
        if named and observation.keys() != keys:
            raise SettingError(f"{name} must have the parts {list(keys)}, but {list(observation)} came")
        tree, sizes = {}, []
        for key, reader in readers.items():
            tree[key], size = reader(observation[key])
            sizes.append(size)
        if any(size != sizes[0] for size in sizes):
            told = sorted({str(size) for size in sizes})
            raise SettingError(f"{name} must have parts of one batch size, but sizes {told} came")
        return tree if named else tuple(tree.values()), sizes[0]

    return read


def _plain_reader(space: Any, dtype: np.dtype, name: str) -> Reader:
    shape, axes = space.shape, len(space.shape)
    target = dtype if isinstance(space, gymnasium.spaces.Box) else np.dtype(np.int32)
    first, stop = (
        (int(space.start), int(space.start + space.n)) if isinstance(space, gymnasium.spaces.Discrete) else (0, 0)
    )

    def read(observation: Any) -> tuple[np.ndarray, int | None]:
        try:
            array = np.asarray(observation)
        except ValueError:
            array = np.empty((), object)
        if array.dtype.kind not in "biuf":
            raise SettingError(f"{name} must be an array of shape {shape} of numbers, but {shown(observation)} came")
        size = None
        if array.shape != shape:
            if array.ndim != axes + 1 or array.shape[1:] != shape:
                raise SettingError(
                    f"{name} must have shape {shape}, or one batch axis before it, but {array.shape} came"
                )
            size = len(array)
        # One number is sooner compared than an array of one.
        fits = first < stop and size is None and first <= array.item() < stop
        if not fits and len(outside := unlawful(array, space)):
            raise SettingError(f"{name} must be inside {one_line(space)}, but {array[tuple(outside[0])]!r} came")
        return array.astype(target), size

    return read
