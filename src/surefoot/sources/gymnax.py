"""gymnax's environments, of its 0.x with one `done` and of its 1.x with `terminated` and `truncated`."""

from __future__ import annotations

from typing import Any

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces

from surefoot.errors import EnvironmentNotFound, UnsupportedSpace, did_you_mean
from surefoot.sources.functional import FunctionalEnvironment, Transition
from surefoot.sources.guard import line


def gymnax_environment(name: str) -> FunctionalEnvironment:
    """The task `name` of gymnax with its default parameters. Raises EnvironmentNotFound, UnsupportedSpace."""
    try:
        import gymnax
        from gymnax.registration import registered_envs
    except ImportError as error:
        raise EnvironmentNotFound(
            f"environment 'gymnax:{name}' needs gymnax: pip install 'surefoot[gymnax]' ({line(error)})"
        ) from None
    if name not in registered_envs:
        raise EnvironmentNotFound(f"gymnax has no environment {name!r}{did_you_mean(name, registered_envs)}")
    made, parameters = gymnax.make(name)
    return adapt(made, parameters)


def adapt(made: Any, parameters: Any) -> FunctionalEnvironment:
    """A gymnax environment with these parameters as a FunctionalEnvironment."""
    limited = hasattr(parameters, "max_steps_in_episode")
    endless = parameters.replace(max_steps_in_episode=np.iinfo(np.int32).max) if limited else parameters

    def reset(key: Any) -> tuple[Any, Any]:
        observation, state = made.reset_env(key, parameters)
        return _typed(state), observation

    def step(key: Any, state: Any, action: Any) -> Transition:
        observation, after, reward, ended, *_ = made.step_env(key, state, action, parameters)
        terminated = ended
        if hasattr(made, "is_truncated"):
            truncated = made.is_truncated(after, parameters)
        elif limited:
            # 0.x calls a time limit an end like any other; a step without a limit says which it was. What the two
            # have in common is computed once.
            terminated = made.step_env(key, state, action, endless)[3]
            truncated = jnp.asarray(ended) & ~jnp.asarray(terminated)
        else:
            truncated = jnp.zeros((), bool)
        return Transition(
            _typed(after),
            observation,
            jnp.asarray(reward, jnp.float32),
            jnp.asarray(terminated, bool),
            jnp.asarray(truncated, bool),
        )

    return FunctionalEnvironment(
        reset,
        step,
        gymnasium_space(made.observation_space(parameters)),
        gymnasium_space(made.action_space(parameters)),
        tells_truncation=limited or hasattr(made, "is_truncated"),
    )


def _typed(state: Any) -> Any:
    """A state whose leaves are arrays: a fresh one may hold Python's numbers."""
    return jax.tree.map(jnp.asarray, state)


def gymnasium_space(space: Any) -> gymnasium.Space:
    """The Gymnasium space of a gymnax space. Raises UnsupportedSpace."""
    kind = type(space).__name__
    if kind == "Discrete":
        return spaces.Discrete(int(space.n))
    if kind == "Box":
        dtype: Any = np.dtype(space.dtype).type
        low, high = (np.broadcast_to(np.asarray(end), space.shape).astype(dtype) for end in (space.low, space.high))
        return spaces.Box(low, high, dtype=dtype)
    if kind == "Dict":
        return spaces.Dict({key: gymnasium_space(part) for key, part in space.spaces.items()})
    if kind == "Tuple":
        return spaces.Tuple([gymnasium_space(part) for part in space.spaces])
    raise UnsupportedSpace(f"gymnax's space {space!r} is not supported")
