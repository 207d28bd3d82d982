"""Brax's environments, with the time limit that Brax keeps in a wrapper counted here and told as truncation."""

from __future__ import annotations

import contextlib
import io
import warnings
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces

from surefoot.errors import EnvironmentFault, EnvironmentNotFound, did_you_mean
from surefoot.sources.functional import FunctionalEnvironment, Transition
from surefoot.sources.guard import line

LIMIT = 1000
"""Steps after which an episode is cut: Brax's own default."""


def brax_environment(name: str) -> FunctionalEnvironment:
    """The task `name` of Brax, cut after LIMIT steps. Raises EnvironmentNotFound, and EnvironmentFault where it cannot
    be made."""
    # What Brax writes of optional parts that are not there would spoil a command's output.
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        try:
            from brax import envs
        except ImportError as error:
            raise EnvironmentNotFound(
                f"environment 'brax:{name}' needs Brax: pip install 'surefoot[brax]' ({line(error)})"
            ) from None
        if name not in envs._envs:  # there is no public list
            raise EnvironmentNotFound(f"brax has no environment {name!r}{did_you_mean(name, envs._envs)}")
        try:
            return adapt(envs.get_environment(name), LIMIT)
        except Exception as error:
            raise EnvironmentFault(f"environment 'brax:{name}' cannot be made: {line(error)}") from error


def adapt(made: Any, limit: int) -> FunctionalEnvironment:
    """A Brax environment without wrappers, its episodes cut after `limit` steps, as a FunctionalEnvironment.

    Its state is Brax's and the steps taken. What in Brax's is no array (names, say) stays as `reset` made it.
    """
    begun, rest = eqx.partition(eqx.filter_eval_shape(made.reset, jax.random.key(0)), _is_shape)

    def reset(key: Any) -> tuple[Any, Any]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            state = made.reset(key)
        return (eqx.filter(state, eqx.is_array_like), jnp.zeros((), jnp.int32)), state.obs

    def step(key: Any, state: Any, action: Any) -> Transition:
        inner, time = state
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            after = made.step(eqx.combine(inner, rest), action)
        terminated = jnp.asarray(after.done) > 0
        cut = time + 1 >= limit
        return Transition(
            (eqx.filter(after, eqx.is_array_like), time + 1), after.obs, after.reward, terminated, cut & ~terminated
        )

    def shown(leaf: Any) -> spaces.Box:
        return spaces.Box(-np.inf, np.inf, leaf.shape, np.float32)

    observation = begun.obs
    space = (
        shown(observation)
        if not isinstance(observation, dict)
        else spaces.Dict({key: shown(leaf) for key, leaf in observation.items()})
    )
    return FunctionalEnvironment(reset, step, space, spaces.Box(-1, 1, (made.action_size,), np.float32))


def _is_shape(leaf: Any) -> bool:
    return isinstance(leaf, jax.ShapeDtypeStruct)
