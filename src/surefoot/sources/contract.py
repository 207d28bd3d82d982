"""What an environment written in JAX must keep to, asked by its shapes alone, before anything of it is compiled."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces

from surefoot.errors import EnvironmentFault, SurefootError
from surefoot.sources.environments import with_spaces
from surefoot.sources.functional import FunctionalEnvironment, Transition
from surefoot.sources.guard import line
from surefoot.spaces import make_head, one_line, space_tree

_OF_VALUES = (jax.errors.ConcretizationTypeError, jax.errors.TracerArrayConversionError)


def made(function: Callable[[], Any], name: str) -> FunctionalEnvironment:
    """What a callable that says that it returns a FunctionalEnvironment returns. Raises EnvironmentFault."""
    try:
        environment = function()
    except SurefootError:
        raise
    except Exception as error:
        raise EnvironmentFault(f"environment {name!r} cannot be made: {line(error)}") from error
    if not isinstance(environment, FunctionalEnvironment):
        raise EnvironmentFault(
            f"environment {name!r} returned {_kind(environment)}, not the FunctionalEnvironment it says"
        )
    return environment


def checked(environment: FunctionalEnvironment, name: str) -> FunctionalEnvironment:
    """The environment with Python's numbers made arrays and the types of all of them fixed, if it keeps to its word.

    A type that JAX may still widen differs between the first step and the next, and would compile every program twice.

    Raises UnsupportedSpace, and EnvironmentFault, naming the environment, where `reset` or `step` cannot be traced,
    where they disagree on the state, or where what they return is not what the spaces and Transition say.
    """

    def reset(key: Any) -> tuple[Any, Any]:
        given = environment.reset(key)
        if not isinstance(given, tuple) or len(given) != 2:
            raise EnvironmentFault(f"{name}: reset must return a state and an observation, but {_kind(given)} came")
        return _arrays(given[0], f"{name}: reset returned state"), _arrays(
            given[1], f"{name}: reset returned observation"
        )

    def step(key: Any, state: Any, action: Any) -> Transition:
        given = environment.step(key, state, action)
        if not isinstance(given, Transition):
            raise EnvironmentFault(f"{name}: step must return a surefoot.Transition, but {_kind(given)} came")
        taken = Transition(
            *(_arrays(part, f"{name}: step returned {which}") for which, part in given._asdict().items())
        )
        return taken._replace(reward=_reward(taken.reward, name))

    with_spaces(environment, name)
    state, observation = _shapes(name, "reset", reset)
    taken = _shapes(name, "step", step, state, _action(environment.action_space))
    _agree(name, "state", state, taken.state)
    for which, shown in (("reset", observation), ("step", taken.observation)):
        _within(f"{name}: {which}", environment.observation_space, shown)
    _agree(name, "observation", observation, taken.observation)
    for flag in ("terminated", "truncated"):
        if (what := _type(getattr(taken, flag))) != "bool[]":
            raise EnvironmentFault(f"{name}: step returned {flag} as {what}; it must be bool[], such as x > 0")
    return replace(environment, reset=reset, step=step)


def _shapes(name: str, which: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """What the function returns for a key and these, as shapes and types. Raises EnvironmentFault where it raises."""
    try:
        return jax.eval_shape(function, jax.random.key(0), *arguments)
    except SurefootError:
        raise
    except _OF_VALUES as error:
        raise EnvironmentFault(
            f"{name}: {which} asks for an array's value while it is compiled ({type(error).__name__}); write jnp.where "
            "or jax.lax.cond in place of if and while, and jax.numpy in place of NumPy"
        ) from error
    except Exception as error:
        raise EnvironmentFault(f"{name}: {which} raised {line(error)}") from error


def _action(space: gymnasium.Space) -> jax.ShapeDtypeStruct:
    """What `step` is given. Raises UnsupportedSpace."""
    head, action_map = make_head(space)
    outputs = jnp.zeros(head.outputs)
    shape = jax.eval_shape(lambda: action_map(head(outputs, outputs if head.gaussian else None).mode()))
    return jax.ShapeDtypeStruct(shape.shape, shape.dtype)


def _arrays(tree: Any, what: str) -> Any:
    return jax.tree_util.tree_map_with_path(lambda path, leaf: _array(leaf, f"{what}{_part(path)}"), tree)


def _array(leaf: Any, what: str) -> Any:
    if not isinstance(leaf, (jax.Array, np.ndarray, np.generic, bool, int, float)):
        raise EnvironmentFault(f"{what} of type {type(leaf).__name__}; it must be an array or a number")
    if isinstance(leaf, jax.Array) and not getattr(leaf, "weak_type", False):
        return leaf
    return jnp.asarray(leaf, dtype=jnp.result_type(leaf))


def _reward(reward: Any, name: str) -> Any:
    if not isinstance(reward, jax.Array) or reward.shape or not _real(reward.dtype):
        raise EnvironmentFault(f"{name}: step returned reward as {_type(reward)}; it must be one number")
    return reward.astype(jnp.result_type(float))


def _agree(name: str, what: str, begun: Any, after: Any) -> None:
    """Raise EnvironmentFault where a step's state or observation has other parts or types than a reset's."""
    ones, others = ({_part(path): leaf for path, leaf in jax.tree.leaves_with_path(tree)} for tree in (begun, after))
    for part in [*ones, *others]:
        pair = [f"as {_type(tree[part])}" if part in tree else "without it" for tree in (ones, others)]
        if pair[0] != pair[1]:
            raise EnvironmentFault(
                f"{name}: reset returned {what}{part} {pair[0]}, but step {pair[1]}; both must return the same"
            )
    structures = [one_line(jax.tree.structure(tree)) for tree in (begun, after)]
    if structures[0] != structures[1]:
        raise EnvironmentFault(
            f"{name}: {what} is {' from reset, but '.join(structures)} from step; both must be the same"
        )


def _within(who: str, space: gymnasium.Space, shown: Any) -> None:
    """Raise EnvironmentFault where an observation's parts, shapes or kinds of number are not those of its space."""
    tree = space_tree(space)
    if str(jax.tree.structure(tree)) != str(jax.tree.structure(shown)):
        raise EnvironmentFault(f"{who} returned as observation {_parts(shown)}, but its space has {_parts(tree)}")
    for (path, leaf), plain in zip(jax.tree.leaves_with_path(shown), jax.tree.leaves(tree), strict=True):
        whole = not isinstance(plain, spaces.Box)
        fits = _real(leaf.dtype) and not (whole and jnp.issubdtype(leaf.dtype, jnp.inexact))
        if leaf.shape != plain.shape or not fits:
            kind = "whole numbers" if whole else "numbers"
            raise EnvironmentFault(
                f"{who} returned observation{_part(path)} as {_type(leaf)}, but its space {one_line(plain)} wants "
                f"{kind} of shape {list(plain.shape)}"
            )


def _real(dtype: Any) -> bool:
    return jnp.issubdtype(dtype, jnp.bool_) or (
        jnp.issubdtype(dtype, jnp.number) and not jnp.issubdtype(dtype, jnp.complexfloating)
    )


def _part(path: Any) -> str:
    return jax.tree_util.keystr(path)


def _parts(tree: Any) -> str:
    leaves = [_part(path) for path, _ in jax.tree.leaves_with_path(tree)]
    return "one array" if leaves == [""] else f"a {type(tree).__name__} of {', '.join(leaves) or 'nothing'}"


def _type(leaf: Any) -> str:
    """Such as float32[3]."""
    if not hasattr(leaf, "dtype"):
        return _kind(leaf)
    return f"{leaf.dtype}[{','.join(str(size) for size in leaf.shape)}]"


def _kind(value: Any) -> str:
    return f"a {type(value).__name__}" + (f" of {len(value)}" if isinstance(value, (tuple, list, dict)) else "")
