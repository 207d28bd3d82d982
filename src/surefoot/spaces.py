"""Gymnasium spaces: which encoder an observation asks for, which head an action asks for.

An encoder turns one batch of observations, of any leading axes, into feature vectors; a head turns a
network's outputs into a Distribution; an action map turns a sampled action into what the environment
takes. All three are static: they hold sizes and limits, no parameters.
"""

from __future__ import annotations

import functools
import reprlib
from collections import OrderedDict
from dataclasses import dataclass
from math import prod
from typing import Any

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces as gym_spaces
from jaxtyping import Array, Bool, Float

from surefoot.arrays import namespace
from surefoot.distributions import (
    Bernoulli,
    Categorical,
    DiagGaussian,
    Distribution,
    MultiCategorical,
    bernoulli_action,
    categorical_action,
    gaussian_action,
    multi_categorical_action,
)
from surefoot.errors import SettingError, UnsupportedSpace

WIDEST = 65_536
"""The most numbers that an observation may be encoded as: a batch of more would not fit into memory."""

SUPPORTED_OBSERVATIONS = "Box vectors and images (3 axes), Discrete, MultiDiscrete, MultiBinary, Dict or Tuple of these"
SUPPORTED_ACTIONS = "Discrete, MultiDiscrete, MultiBinary and Box"
_MOST_NUMBERS = 10**7  # of a space; a description of a few bytes must not take all memory
_NARROWEST_RANGE, _WIDEST_RANGE = 1e-6, 65_535  # of an image's values; beyond it bounds say nothing of a scale


@dataclass(frozen=True)
class _Leaf:
    """One plain space inside an observation: how it is encoded."""

    shape: tuple[int, ...]
    sizes: tuple[int, ...] | None  # one-hot sizes of its whole numbers; None where it is used as it is
    start: tuple[int, ...] = ()
    normalised: bool = False
    image: tuple[int, int, int] | None = None  # height, width, channels, where it is one
    offset: float = 0.0  # of what its numbers are taken less, and then divided by the span
    span: float = 1.0

    @property
    def channels_first(self) -> bool:
        """Whether the space has its image's channels before its height; features have them last."""
        return self.image is not None and self.image != self.shape

    @property
    def scaled(self) -> bool:
        """Whether offset and span change anything."""
        return (self.offset, self.span) != (0, 1)

    @property
    def width(self) -> int:
        return sum(self.sizes) if self.sizes is not None else prod(self.shape)

    def encode(self, value: Array, dtype: Any) -> Array:
        leading = value.shape[: value.ndim - len(self.shape)]
        if self.channels_first:
            value = namespace(value).moveaxis(value, -3, -1)
        flat = value.reshape(*leading, -1)
        if self.sizes is None:
            flat = flat.astype(dtype)
            return (flat - np.asarray(self.offset, dtype)) / np.asarray(self.span, dtype) if self.scaled else flat
        which, number = one_hot(self.sizes, self.start)
        return (flat[..., which] == number).astype(dtype)


@functools.cache
def one_hot(sizes: tuple[int, ...], start: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """For each column of several one-hot vectors side by side: which value it is of, and the number it stands for."""
    which = np.repeat(np.arange(len(sizes)), sizes)
    number = np.concatenate([first + np.arange(size) for first, size in zip(start, sizes, strict=True)])
    return which, number


@dataclass(frozen=True)
class Encoder:
    """Observations of one space as feature vectors of `width` numbers.

    Whole-number spaces become one-hot vectors, binary ones 0/1, Box vectors stay. The leaves of a Dict or
    Tuple lie side by side in the order in which JAX flattens them.

    A Box with three axes is an image, by row, column and channel. Its bounds are its scale: its values become numbers
    from 0 to 1, as they are nowhere where they would be divided by the spread of a pixel that is seldom lit. Only
    images whose bounds are infinite, or too wide to be a scale, are normalised like vectors.
    """

    leaves: tuple[_Leaf, ...]

    @property
    def width(self) -> int:
        """Numbers in a feature vector."""
        return sum(leaf.width for leaf in self.leaves)

    @property
    def normalised(self) -> np.ndarray:
        """Which features have a scale of their own and want normalising: bool [width]."""
        return np.concatenate([np.full(leaf.width, leaf.normalised) for leaf in self.leaves])

    @property
    def image(self) -> tuple[int, int, int] | None:
        """Height, width and channels where the features are one image and nothing else."""
        return self.leaves[0].image if len(self.leaves) == 1 else None

    def __call__(self, observation: Any, dtype: Any = jnp.float32) -> Float[Array, "... width"]:
        """Feature vectors of a (tree of) observation arrays with any leading axes."""
        values = [observation] if isinstance(observation, np.ndarray) else jax.tree.leaves(observation)
        encoded = [leaf.encode(value, dtype) for leaf, value in zip(self.leaves, values, strict=True)]
        return encoded[0] if len(encoded) == 1 else namespace(encoded[0]).concatenate(encoded, axis=-1)


def space_tree(space: gymnasium.Space) -> Any:
    """The plain spaces inside `space`, as a tree of the same structure as its observations."""
    if isinstance(space, gym_spaces.Dict):
        return {key: space_tree(sub) for key, sub in space.spaces.items()}
    if isinstance(space, gym_spaces.Tuple):
        return tuple(space_tree(sub) for sub in space.spaces)
    return space


def make_encoder(space: gymnasium.Space) -> Encoder:
    """The encoder for an observation space. Raises UnsupportedSpace, saying what is supported."""
    leaves = jax.tree.leaves(space_tree(space), is_leaf=lambda node: isinstance(node, gymnasium.Space))
    if not leaves:
        raise UnsupportedSpace(f"observation space {one_line(space)} is empty; supported are {SUPPORTED_OBSERVATIONS}")
    encoder = Encoder(tuple(_leaf(leaf) for leaf in leaves))
    if encoder.width > WIDEST:
        raise UnsupportedSpace(
            f"observation space {one_line(space)} would be {encoder.width:,} numbers (whole numbers become one for "
            f"each of their values), but at most {WIDEST:,} are supported; describe the state in a Box of fewer"
        )
    return encoder


def _choices(space: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """How many values each whole number of a Discrete or MultiDiscrete has, and its first. Raises UnsupportedSpace."""
    count = space.n if isinstance(space, gym_spaces.Discrete) else space.nvec
    sizes, start = (tuple(int(value) for value in np.ravel(part)) for part in (count, space.start))
    limits = np.iinfo(np.int32)
    if any(first < limits.min or first + size - 1 > limits.max for size, first in zip(sizes, start, strict=True)):
        raise UnsupportedSpace(f"space {one_line(space)} has values beyond 32 bits; let it start at 0")
    return sizes, start


def _leaf(space: Any) -> _Leaf:
    if isinstance(space, (gym_spaces.Discrete, gym_spaces.MultiDiscrete)):
        return _Leaf(space.shape or (), *_choices(space))
    if isinstance(space, gym_spaces.MultiBinary):
        return _Leaf(space.shape, None)
    if isinstance(space, gym_spaces.Box) and len(space.shape) <= 1 and prod(space.shape) > 0:
        return _Leaf(space.shape, None, normalised=True)
    if isinstance(space, gym_spaces.Box) and len(space.shape) == 3 and prod(space.shape) > 0:
        return _image_leaf(space)
    hint = ""
    if isinstance(space, gym_spaces.Box) and prod(space.shape) > 0:
        hint = "; gymnasium.wrappers.FlattenObservation makes this one a vector"
    raise UnsupportedSpace(
        f"observation space {one_line(space)} is not supported: supported are {SUPPORTED_OBSERVATIONS}{hint}"
    )


def _image_leaf(space: gym_spaces.Box) -> _Leaf:
    """An image of rows, columns and channels, or of channels, rows and columns.

    The channels are the odd one out of a square image; of any other, the first where it is shorter than the last.
    """
    first, second, third = space.shape
    square_last, square_first = second == third, first == second
    channels_first = square_last if square_last != square_first else first < third
    image = (second, third, first) if channels_first else (first, second, third)
    low, high = float(np.min(space.low)), float(np.max(space.high))
    span = high - low
    if _NARROWEST_RANGE <= span <= _WIDEST_RANGE and abs(low) <= _WIDEST_RANGE:
        return _Leaf(space.shape, None, image=image, offset=low, span=span)
    return _Leaf(space.shape, None, normalised=True, image=image)


@dataclass(frozen=True)
class Head:
    """Network outputs [..., outputs] as a distribution over actions.

    `kind` is the distribution's class; `sizes` the number of choices of each categorical dimension, or
    one 2 or 1 a dimension for Bernoulli and Gaussian ones.
    """

    kind: str
    sizes: tuple[int, ...]

    @property
    def outputs(self) -> int:
        """Numbers that the network must return."""
        return sum(self.sizes) if self.kind in ("Categorical", "MultiCategorical") else len(self.sizes)

    @property
    def gaussian(self) -> bool:
        """Whether the head needs a log standard deviation a dimension."""
        return self.kind == "DiagGaussian"

    def __call__(
        self,
        outputs: Float[Array, "... K"],
        log_std: Float[Array, " D"] | None = None,
        mask: Bool[Array, "... K"] | None = None,
    ) -> Distribution:
        """The distribution; `mask` (categorical heads only) is True where an action is allowed."""
        if self.kind == "Categorical":
            return Categorical(outputs, mask)
        if self.kind == "MultiCategorical":
            return MultiCategorical(outputs, mask, self.sizes)
        if mask is not None:
            raise SettingError(f"mask: a {self.kind} policy takes no action mask; pass None")
        if self.kind == "Bernoulli":
            return Bernoulli(outputs)
        if log_std is None:
            raise SettingError("log_std: a Gaussian head needs one number a dimension, but None came")
        return DiagGaussian(outputs, namespace(outputs).broadcast_to(log_std, outputs.shape))

    def action(self, outputs: Any, log_std: Any, mask: Any, noise: Any) -> Any:
        """What the distribution's `sample_from(noise)` is, from plain arrays, NumPy's or JAX's."""
        if self.kind == "Categorical":
            return categorical_action(outputs, mask, noise)
        if self.kind == "MultiCategorical":
            return multi_categorical_action(outputs, mask, noise, self.sizes)
        return bernoulli_action(outputs, noise) if log_std is None else gaussian_action(outputs, log_std, noise)

    def mode(self, outputs: Any, mask: Any) -> Any:
        """What the distribution's `mode` is, from plain arrays."""
        if self.kind == "Categorical":
            return categorical_action(outputs, mask, None)
        if self.kind == "MultiCategorical":
            return multi_categorical_action(outputs, mask, None, self.sizes)
        return bernoulli_action(outputs, None) if self.kind == "Bernoulli" else outputs

    def noise(self, leading: tuple[int, ...], generator: np.random.Generator) -> np.ndarray:
        """The `noise` of the distribution, [*leading, outputs], drawn by NumPy."""
        shape = (*leading, self.outputs)
        if self.gaussian:
            return generator.standard_normal(shape)
        return generator.logistic(size=shape) if self.kind == "Bernoulli" else generator.gumbel(size=shape)


@dataclass(frozen=True)
class ActionMap:
    """From a sampled action to what the environment takes.

    A fully bounded dimension of a Box maps [-1, 1] onto [low, high] and clips; a half-bounded one is
    clipped only; an unbounded one stays. Whole numbers are shifted by the space's start. Trajectories
    keep the sampled action, never the mapped one, so log probabilities stay those of what was sampled.
    The number type stays JAX's; whoever hands the action to the environment gives it the space's own.
    """

    shape: tuple[int, ...]
    start: tuple[int, ...] | None = None
    low: tuple[float, ...] | None = None
    high: tuple[float, ...] | None = None

    def __call__(self, action: Any) -> Any:
        """The environment's actions, [..., *shape], for sampled ones of any leading axes."""
        if self.low is None or self.high is None:
            leading = action.shape[: action.ndim - (1 if self.shape else 0)]
            shaped = action.reshape((*leading, *self.shape))
            return shaped if self.start is None else shaped + _offset(self.start, self.shape, np.dtype(shaped.dtype))
        centre, half, low, high = affine(self.low, self.high, np.dtype(action.dtype))
        xp = namespace(action)
        mapped = xp.minimum(xp.maximum(centre + half * action, low), high)
        return mapped.reshape((*action.shape[:-1], *self.shape))

    def fits(self, other: ActionMap) -> bool:
        """Whether it is the other one but for how bounds are rounded: EnvPool has some of Gymnasium's in 64 bits."""
        mine, others = (_in_32_bits(each.low) + _in_32_bits(each.high) for each in (self, other))
        return (self.shape, self.start, mine) == (other.shape, other.start, others)

    def saturated(self, action: Array) -> Array:
        """Which coordinates of sampled Box actions are cut off at a bound: bool, like `action`; else False."""
        if self.low is None or self.high is None:
            return jnp.zeros(action.shape, bool)
        low, high = np.asarray(self.low), np.asarray(self.high)
        bounded = np.isfinite(low) & np.isfinite(high)
        below = np.where(bounded, -1.0, low).astype(action.dtype)
        above = np.where(bounded, 1.0, high).astype(action.dtype)
        return (action < below) | (action > above)


def _in_32_bits(bounds: tuple[float, ...] | None) -> list[Any]:
    return [None] if bounds is None else np.asarray(bounds, np.float32).tolist()


@functools.cache
def _offset(start: tuple[int, ...], shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """What the first choices of whole-number actions are called."""
    return np.reshape(start, shape).astype(dtype)


@functools.cache
def affine(low: tuple[float, ...], high: tuple[float, ...], dtype: np.dtype) -> tuple[np.ndarray, ...]:
    """Centre and half width of the bounded dimensions (0 and 1 of the others), low and high."""
    lowest, highest = np.asarray(low), np.asarray(high)
    bounded = np.isfinite(lowest) & np.isfinite(highest)
    least, most = np.where(bounded, lowest, -1), np.where(bounded, highest, 1)
    parts = least / 2 + most / 2, most / 2 - least / 2, lowest, highest
    return tuple(part.astype(dtype) for part in parts)


def make_head(space: gymnasium.Space) -> tuple[Head, ActionMap]:
    """The head and action map for an action space. Raises UnsupportedSpace, saying what is supported."""
    if isinstance(space, (gym_spaces.Discrete, gym_spaces.MultiDiscrete)):
        sizes, start = _choices(space)
        kind = "Categorical" if isinstance(space, gym_spaces.Discrete) else "MultiCategorical"
        return Head(kind, sizes), ActionMap(space.shape or (), start)
    if isinstance(space, gym_spaces.MultiBinary):
        return Head("Bernoulli", (2,) * prod(space.shape)), ActionMap(space.shape)
    if isinstance(space, gym_spaces.Box) and np.issubdtype(space.dtype, np.floating) and prod(space.shape) > 0:
        low = tuple(float(x) for x in np.ravel(space.low))
        high = tuple(float(x) for x in np.ravel(space.high))
        return Head("DiagGaussian", (1,) * len(low)), ActionMap(space.shape, None, low, high)
    raise UnsupportedSpace(
        f"action space {one_line(space)} is not supported; supported are {SUPPORTED_ACTIONS} of floats"
    )


def lawful(action: np.ndarray, space: gymnasium.Space) -> np.ndarray:
    """Mapped actions in the space's own number type, inside bounds that 32 bits may only have rounded to."""
    if action.dtype == space.dtype:
        return action  # the bounds that it was clipped to are the space's own
    action = action.astype(space.dtype)
    return np.minimum(np.maximum(action, space.low), space.high) if isinstance(space, gym_spaces.Box) else action


def unlawful(values: np.ndarray, space: Any) -> np.ndarray:
    """Where observations of a plain space are not finite, or no whole number that it holds: indices [count, axes].

    `values` may have leading axes. A Box's bounds are not checked: many environments leave theirs a little.
    """
    lawful_there = lawful_values(values, space)
    # Acting asks for every observation, and looking for the place takes longer than seeing that there is none.
    return np.empty((0, values.ndim), int) if lawful_there.all() else np.argwhere(~lawful_there)


def lawful_values(values: Any, space: Any) -> Any:
    """Which numbers of observations of a plain space are finite, and whole ones that it holds: bool, NumPy's or JAX's
    as `values` are, of their shape."""
    if isinstance(space, gym_spaces.Box):
        return namespace(values).isfinite(values)
    if isinstance(space, gym_spaces.MultiBinary):
        return (values == 0) | (values == 1)
    count = space.n if isinstance(space, gym_spaces.Discrete) else space.nvec
    return (values >= space.start) & (values < space.start + count)


def first_entries(space: Any) -> np.ndarray:
    """Where the entries of each choice of a Discrete or MultiDiscrete begin in an action mask."""
    sizes, _ = _choices(space)
    return np.cumsum([0, *sizes[:-1]])


def some_allowed(mask: np.ndarray, firsts: np.ndarray) -> np.ndarray:
    """Whether masks [..., K] leave something to each choice, whose entries begin at `firsts`: bool [...]."""
    return np.asarray(np.logical_or.reduceat(mask, firsts, axis=-1).all(axis=-1))


def one_line(space: object) -> str:
    """A space, or whatever is told of one, as text without line breaks."""
    return " ".join(str(space).split())


def describe(space: gymnasium.Space) -> dict[str, Any]:
    """A space as plain JSON, from which `parse` makes it again. Raises UnsupportedSpace."""
    if isinstance(space, gym_spaces.Dict):
        return {"type": "Dict", "spaces": {key: describe(sub) for key, sub in space.spaces.items()}}
    if isinstance(space, gym_spaces.Tuple):
        return {"type": "Tuple", "spaces": [describe(sub) for sub in space.spaces]}
    if isinstance(space, gym_spaces.Discrete):
        return {"type": "Discrete", "n": int(space.n), "start": int(space.start), "dtype": str(space.dtype)}
    if isinstance(space, gym_spaces.MultiDiscrete):
        return {
            "type": "MultiDiscrete",
            "nvec": space.nvec.tolist(),
            "start": space.start.tolist(),
            "dtype": str(space.dtype),
        }
    if isinstance(space, gym_spaces.MultiBinary):
        return {"type": "MultiBinary", "n": space.n if isinstance(space.n, int) else [int(n) for n in space.n]}
    if isinstance(space, gym_spaces.Box):
        return {
            "type": "Box",
            "low": _told(space.low),
            "high": _told(space.high),
            "shape": list(space.shape),
            "dtype": str(space.dtype),
        }
    raise UnsupportedSpace(f"space {one_line(space)} is not supported: supported are {SUPPORTED_OBSERVATIONS}")


def _told(bound: np.ndarray) -> Any:
    """A Box's bound as JSON has it; one number for an image whose pixels all have the same."""
    return bound.flat[0].item() if bound.ndim == 3 and bound.size and (bound == bound.flat[0]).all() else bound.tolist()


def _bound(told: Any, shape: Any, dtype: np.dtype) -> np.ndarray:
    """The bound that `_told` told, an array of that shape. Raises ValueError."""
    bound = np.asarray(told, dtype)
    if bound.ndim or len(shape) != 3:
        return bound.reshape(shape)
    _check_count(shape)
    return np.full(shape, bound)


def _check_count(shape: Any) -> None:
    if np.prod(shape, dtype=float) > _MOST_NUMBERS:
        raise ValueError(f"more than {_MOST_NUMBERS} numbers")


def parse(text: dict[str, Any]) -> gymnasium.Space:
    """The space that `describe` described. Raises UnsupportedSpace where the description is none."""
    try:
        kind = text["type"]
        if kind == "Dict":
            return gym_spaces.Dict(OrderedDict((key, parse(sub)) for key, sub in text["spaces"].items()))
        if kind == "Tuple":
            return gym_spaces.Tuple([parse(sub) for sub in text["spaces"]])
        if kind == "Discrete":
            return gym_spaces.Discrete(text["n"], start=text["start"], dtype=np.dtype(text["dtype"]).type)
        if kind == "MultiDiscrete":
            return gym_spaces.MultiDiscrete(
                np.asarray(text["nvec"]), dtype=np.dtype(text["dtype"]).type, start=np.asarray(text["start"])
            )
        if kind == "MultiBinary":
            _check_count(text["n"])
            return gym_spaces.MultiBinary(text["n"])
        if kind == "Box":
            dtype = np.dtype(text["dtype"])
            with np.errstate(over="raise"):
                low, high = (_bound(text[end], text["shape"], dtype) for end in ("low", "high"))
            return gym_spaces.Box(low, high, dtype=dtype.type)
    except (LookupError, TypeError, ValueError, ArithmeticError, AssertionError, AttributeError) as error:
        raise UnsupportedSpace(f"space description {reprlib.repr(text)} cannot be read: {one_line(error)}") from None
    raise UnsupportedSpace(
        f"space description of type {reprlib.repr(kind)} is not one of "
        "Box, Discrete, MultiDiscrete, MultiBinary, Dict, Tuple"
    )
