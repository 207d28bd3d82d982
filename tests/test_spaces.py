"""Encoders, heads, action maps and the description of spaces, space by space."""

from __future__ import annotations

import json
from collections import OrderedDict
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces

from probes import ACTIONS, INF, OBSERVATIONS, numbers
from surefoot.errors import SettingError, UnsupportedSpace
from surefoot.settings import dumps
from surefoot.spaces import describe, make_encoder, make_head, parse


def box(low: list, high: list, dtype: Any = np.float32) -> spaces.Box:
    return spaces.Box(np.array(low, dtype), np.array(high, dtype), dtype=dtype)


# Encoders.

ENCODED = [
    # space, observation, its features
    pytest.param(numbers(3), [1.5, -2, 300], [1.5, -2, 300], id="box as it is"),
    pytest.param(spaces.Box(0, 255, (2,), np.uint8), [7, 255], [7, 255], id="bytes as they are"),
    pytest.param(spaces.Box(-1, 1, ()), 0.25, [0.25], id="scalar"),
    pytest.param(spaces.Discrete(4), 3, [0, 0, 0, 1], id="discrete"),
    pytest.param(spaces.Discrete(3, start=-2), -1, [0, 1, 0], id="discrete from its start"),
    pytest.param(spaces.MultiDiscrete([2, 3]), [1, 0], [0, 1, 1, 0, 0], id="multidiscrete"),
    pytest.param(
        spaces.MultiDiscrete([[2], [3]], start=[[5], [-1]]), [[5], [1]], [1, 0, 0, 0, 1], id="multidiscrete from starts"
    ),
    pytest.param(spaces.MultiBinary((2, 2)), [[1, 0], [0, 1]], [1, 0, 0, 1], id="multibinary row by row"),
    pytest.param(
        spaces.Dict(OrderedDict(b=spaces.Discrete(2), a=numbers(1))), {"b": 1, "a": [9]}, [9, 0, 1], id="dict by key"
    ),
    pytest.param(
        spaces.Dict({"z": numbers(1), "m": spaces.Dict(OrderedDict(d=numbers(1), c=numbers(1)))}),
        {"z": [1], "m": {"d": [2], "c": [3]}},
        [3, 2, 1],
        id="nested dict by key",
    ),
    pytest.param(
        spaces.Tuple([spaces.Discrete(2), spaces.Tuple([numbers(1), spaces.MultiBinary(2)])]),
        (0, ([4], [1, 0])),
        [1, 0, 4, 1, 0],
        id="nested tuple in order",
    ),
]


@pytest.mark.parametrize(("space", "observation", "features"), ENCODED)
def test_encoder_gives_the_features_of_its_space(space, observation, features):
    observation = laid_out(space, observation)
    encoder = make_encoder(space)
    encoded = encoder(observation)
    assert encoder.width == len(features)
    assert encoded.dtype == jnp.float32
    np.testing.assert_array_equal(encoded, features)


def laid_out(space: spaces.Space, value: Any) -> Any:
    """`value` as arrays with the structure of `space`, a Dict's keys in the space's own order."""
    if isinstance(space, spaces.Dict):
        return {key: laid_out(sub, value[key]) for key, sub in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(laid_out(sub, part) for sub, part in zip(space.spaces, value, strict=True))
    return np.asarray(value, space.dtype)


@pytest.mark.parametrize("name", OBSERVATIONS)
def test_encoder_treats_any_leading_axes_alike(name, seed, dtype):
    space = OBSERVATIONS[name]
    space.seed(seed)
    drawn = [laid_out(space, space.sample()) for _ in range(6)]
    encoder = make_encoder(space)
    one_by_one = np.stack([encoder(observation, dtype) for observation in drawn])
    batch = jax.tree.map(lambda *parts: np.stack(parts).reshape(3, 2, *parts[0].shape), *drawn)
    together = encoder(batch, dtype)
    assert together.shape == (3, 2, encoder.width)
    assert together.dtype == dtype
    np.testing.assert_array_equal(np.reshape(together, (6, -1)), one_by_one)


def test_only_box_features_are_normalised():
    space = spaces.Dict(
        {"a": spaces.Discrete(2), "b": numbers(2), "c": spaces.MultiBinary(1), "d": spaces.MultiDiscrete([2]),
         "e": spaces.Box(-1, 1, ())}
    )  # fmt: skip
    assert make_encoder(space).normalised.tolist() == [False] * 2 + [True] * 2 + [False] * 3 + [True]


# Action maps.

MAPPED = [
    # space, sampled actions, what the environment gets, what of them is cut off
    pytest.param(
        box([-2], [2]), [[-1], [0], [0.5], [1], [1.5], [-9]], [[-2], [0], [1], [2], [2], [-2]], [0, 0, 0, 0, 1, 1],
        id="symmetric",
    ),
    pytest.param(
        box([-1, 10], [3, 11]), [[-1, -1], [0, 0], [1, 1], [2, -2]], [[-1, 10], [1, 10.5], [3, 11], [3, 10]],
        [[0, 0], [0, 0], [0, 0], [1, 1]], id="asymmetric",
    ),
    pytest.param(box([0.25], [INF]), [[0.25], [7], [0]], [[0.25], [7], [0.25]], [0, 0, 1], id="bounded below"),
    pytest.param(box([-INF], [0.5]), [[0.5], [-7], [1]], [[0.5], [-7], [0.5]], [0, 0, 1], id="bounded above"),
    pytest.param(box([-INF], [INF]), [[-1e6], [0.1]], [[-1e6], [0.1]], [0, 0], id="unbounded"),
    pytest.param(
        box([-2, 0, -INF, -INF], [6, INF, 1, INF]), [[0, 5, -5, 5], [2, -1, 2, 9]], [[2, 5, -5, 5], [6, 0, 1, 9]],
        [[0, 0, 0, 0], [1, 1, 1, 0]], id="each bound its own",
    ),
    pytest.param(box([3], [3]), [[0], [0.5]], [[3], [3]], [0, 0], id="a single value"),
    pytest.param(box([-3e38], [3e38]), [[0], [0.5]], [[0], [1.5e38]], [0, 0], id="a span beyond float32"),
    pytest.param(
        box([[-2, 0], [-INF, 0]], [[2, 4], [INF, INF]]), [[1, 1, 3, -3]], [[[2, 4], [3, 0]]], [[0, 0, 0, 1]],
        id="shape (2, 2)",
    ),
    pytest.param(spaces.Discrete(3, start=-1), [0, 1, 2], [-1, 0, 1], [0, 0, 0], id="discrete from its start"),
    pytest.param(
        spaces.MultiDiscrete([2, 3], start=[5, -1]), [[0, 0], [1, 2]], [[5, -1], [6, 1]], [[0, 0], [0, 0]],
        id="multidiscrete from starts",
    ),
    pytest.param(
        spaces.MultiDiscrete([[2, 3], [4, 2]]), [[1, 2, 3, 0]], [[[1, 2], [3, 0]]], [[0] * 4],
        id="multidiscrete shape (2, 2)",
    ),
    pytest.param(spaces.MultiBinary((2, 1)), [[1, 0]], [[[1], [0]]], [[0, 0]], id="multibinary shape (2, 1)"),
]  # fmt: skip


@pytest.mark.parametrize(("space", "sampled", "given", "cut"), MAPPED)
def test_action_map_gives_what_the_environment_takes_and_knows_what_it_cut(space, sampled, given, cut):
    _, action_map = make_head(space)
    kind = np.float32 if isinstance(space, spaces.Box) else np.int32
    sampled, given = jnp.asarray(sampled, kind), np.asarray(given, kind)
    np.testing.assert_allclose(action_map(sampled), given, rtol=1e-6)
    saturated = np.asarray(action_map.saturated(sampled))
    assert saturated.dtype == np.bool_
    assert saturated.shape == sampled.shape
    np.testing.assert_array_equal(saturated, np.reshape(cut, sampled.shape))
    for one, wanted in zip(sampled, given, strict=True):
        np.testing.assert_allclose(action_map(one), wanted, rtol=1e-6)
        assert space.contains(np.asarray(action_map(one), space.dtype)[()])


@pytest.mark.parametrize("name", ACTIONS)
def test_head_and_map_turn_any_outputs_into_actions_of_the_space(name, rng, key, dtype):
    space = ACTIONS[name]
    head, action_map = make_head(space)
    outputs = jnp.asarray(rng.normal(scale=3, size=(50, head.outputs)), dtype)
    log_std = jnp.ones(head.outputs, dtype) if head.gaussian else None

    @jax.jit
    def sampled():
        distribution = head(outputs, log_std)
        action = distribution.sample(key)
        return action_map(action), distribution.log_prob(action)

    given, log_prob = jax.device_get(sampled())
    assert given.shape == (50, *space.shape)
    assert all(space.contains(one) for one in given.astype(space.dtype))
    assert log_prob.dtype == dtype
    assert np.isfinite(log_prob).all()


def test_choices_are_what_the_space_says():
    sizes = {name: make_head(space)[0].outputs for name, space in ACTIONS.items()}
    assert sizes == {
        "discrete": 3,
        "multidiscrete": 9,
        "multidiscrete (2, 2)": 11,
        "multibinary": 4,
        "box": 2,
        "unbounded": 2,
        "asymmetric": 2,
        "half-bounded": 2,
        "mixed (2, 2)": 4,
    }


@pytest.mark.parametrize("name", ["multibinary", "box"])
def test_a_mask_for_what_takes_none_is_refused(name):
    head, _ = make_head(ACTIONS[name])
    outputs = jnp.zeros(head.outputs)
    with pytest.raises(SettingError, match=r"^mask: "):
        head(outputs, jnp.zeros(head.outputs), jnp.ones(head.outputs, bool))


# Descriptions.

EXTREMES = {
    "int64 limits": spaces.Box(np.iinfo(np.int64).min, np.iinfo(np.int64).max, (2,), np.int64),
    "float64 digits": spaces.Box(-0.1, np.nextafter(0.1, 1), (2,), np.float64),
    "float32 limits": spaces.Box(np.finfo(np.float32).min, np.finfo(np.float32).max, (1,), np.float32),
    "infinite scalar": spaces.Box(-INF, INF, (), np.float32),
    "discrete int32": spaces.Discrete(3, start=2, dtype=np.int32),
    "multidiscrete int32": spaces.MultiDiscrete([2, 3], dtype=np.int32),
    "multibinary of one number": spaces.MultiBinary(3),
    "dict in an order of its own": spaces.Dict(OrderedDict(b=numbers(1), a=spaces.Discrete(2))),
    "image": spaces.Box(0, 255, (2, 2, 3), np.uint8),
}
DESCRIBED = {**OBSERVATIONS, **{f"action {name}": space for name, space in ACTIONS.items()}, **EXTREMES}


@pytest.mark.parametrize("name", DESCRIBED)
def test_a_description_gives_the_space_again(name):
    space = DESCRIBED[name]
    written = dumps(describe(space))
    again = parse(json.loads(written))
    assert again == space
    assert again.dtype == space.dtype
    assert repr(again) == repr(space)
    assert parse(describe(space)) == space
    assert "Infinity" not in written


@pytest.mark.parametrize(
    "text",
    [
        None,
        [],
        "Box",
        {},
        {"type": "Sphere"},
        {"type": "Discrete"},
        {"type": "Discrete", "n": 10**30, "start": 0, "dtype": "int64"},
        {"type": "Discrete", "n": 0, "start": 0, "dtype": "int64"},
        {"type": "Discrete", "n": 2, "start": 0, "dtype": "no type"},
        {"type": "Box", "low": [0], "high": [1], "shape": [2], "dtype": "float32"},
        {"type": "Box", "low": ["low"], "high": [1], "shape": [1], "dtype": "float32"},
        {"type": "Box", "low": [1], "high": [0], "shape": [1], "dtype": "float32"},
        {"type": "MultiDiscrete", "nvec": "many", "start": [0], "dtype": "int64"},
        {"type": "MultiBinary"},
        {"type": "Dict", "spaces": [1, 2]},
        {"type": "Dict", "spaces": {"a": {"type": "Sphere"}}},
        {"type": "Tuple", "spaces": 3},
    ],
)
def test_what_describes_no_space_is_refused_in_one_line(text):
    with pytest.raises(UnsupportedSpace) as refusal:
        parse(text)
    assert "\n" not in str(refusal.value)


# Refusals.

SHADED = spaces.Box(np.zeros((2, 2)), np.arange(4.0).reshape(2, 2) + 1, dtype=np.float64)
NO_OBSERVATION = {
    "image without channels": spaces.Box(0, 255, (8, 8), np.uint8),
    "image with bounds of its own": SHADED,
    "images in a row": spaces.Box(0, 255, (2, 8, 8, 3), np.uint8),
    "box of nothing": spaces.Box(0, 1, (0,)),
    "text": spaces.Text(5),
    "sequence": spaces.Sequence(spaces.Discrete(2)),
    "graph": spaces.Graph(numbers(1), None),
    "empty dict": spaces.Dict({}),
    "empty tuple": spaces.Tuple([]),
    "text in a dict": spaces.Dict({"a": numbers(1), "b": spaces.Dict({"c": spaces.Text(5)})}),
    "sequence in a tuple": spaces.Tuple([numbers(1), spaces.Sequence(spaces.Discrete(2))]),
}


@pytest.mark.parametrize("name", NO_OBSERVATION)
def test_an_unsupported_observation_space_is_refused_in_one_line_that_says_what_is_supported(name):
    with pytest.raises(UnsupportedSpace, match=r"^observation space") as refusal:
        make_encoder(NO_OBSERVATION[name])
    message = str(refusal.value)
    assert "\n" not in message
    assert all(word in message for word in ("Box", "Discrete", "MultiDiscrete", "MultiBinary", "Dict", "Tuple"))
    assert ("FlattenObservation" in message) == name.startswith("image")


NO_ACTION = {
    "whole-number box": spaces.Box(0, 5, (2,), np.int64),
    "box of nothing": spaces.Box(0, 1, (0,)),
    "text": spaces.Text(5),
    "sequence": spaces.Sequence(spaces.Discrete(2)),
    "dict": spaces.Dict({"a": spaces.Discrete(2), "b": spaces.MultiDiscrete([[2, 3], [2, 2]])}),
    "tuple": spaces.Tuple([spaces.Discrete(2), SHADED]),
}


@pytest.mark.parametrize("name", NO_ACTION)
def test_an_unsupported_action_space_is_refused_in_one_line_that_says_what_is_supported(name):
    with pytest.raises(UnsupportedSpace, match=r"^action space") as refusal:
        make_head(NO_ACTION[name])
    message = str(refusal.value)
    assert "\n" not in message
    assert all(word in message for word in ("Box", "Discrete", "MultiDiscrete", "MultiBinary", "floats"))


@pytest.mark.parametrize("space", [spaces.Text(5), spaces.Sequence(spaces.Discrete(2))], ids=["text", "sequence"])
def test_an_unsupported_space_is_not_described(space):
    with pytest.raises(UnsupportedSpace):
        describe(space)


PUSH = spaces.Box(-0.4, 0.4, (2,), np.float32)


@pytest.mark.parametrize(
    ("other", "fits"),
    [
        (PUSH, True),
        (spaces.Box(-0.4, 0.4, (2,), np.float64), True),  # 0.4 in 32 bits is another number
        (spaces.Box(-0.4, 0.41, (2,), np.float64), False),
        (spaces.Box(-0.4, 0.4, (1, 2), np.float32), False),
        (spaces.Box(-np.inf, 0.4, (2,), np.float32), False),
        (spaces.Discrete(2), False),
    ],
)
def test_bounds_that_differ_by_rounding_fit(other, fits):
    assert make_head(PUSH)[1].fits(make_head(other)[1]) is fits
    assert make_head(other)[1].fits(make_head(PUSH)[1]) is fits


def test_whole_numbers_that_begin_elsewhere_do_not_fit():
    one, other = (make_head(spaces.Discrete(3, start=start))[1] for start in (0, 1))
    assert one.fits(one)
    assert not one.fits(other)
