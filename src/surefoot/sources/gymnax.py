"""gymnax's environments, of its 0.x with one `done` and of its 1.x with `terminated` and `truncated`."""

from __future__ import annotations

import contextlib
import functools
import sys
import warnings
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import gymnasium
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces

from surefoot.errors import EnvironmentFault, EnvironmentNotFound, SurefootError, UnsupportedSpace, did_you_mean
from surefoot.sources.functional import FunctionalEnvironment, Transition
from surefoot.sources.guard import line
from surefoot.spaces import one_line


def gymnax_environment(name: str) -> FunctionalEnvironment:
    """The task `name` of gymnax with its default parameters.

    Raises EnvironmentNotFound, UnsupportedSpace, and EnvironmentFault where it cannot be made.
    """
    try:
        with _drawing_later():
            import gymnax
        from gymnax.registration import registered_envs
    except ImportError as error:
        raise EnvironmentNotFound(
            f"environment 'gymnax:{name}' needs gymnax: pip install 'surefoot[gymnax]' ({line(error)})"
        ) from None
    if name not in registered_envs:
        raise EnvironmentNotFound(f"gymnax has no environment {name!r}{did_you_mean(name, registered_envs)}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return adapt(*gymnax.make(name))
    except SurefootError:
        raise
    except Exception as error:
        raise EnvironmentFault(f"environment 'gymnax:{name}' cannot be made: {line(error)}") from error


def _pyplot() -> Any:
    import matplotlib.pyplot

    return matplotlib.pyplot


def _seaborn() -> Any:
    import seaborn

    return seaborn


_DRAWING = {"matplotlib.pyplot": _pyplot, "seaborn": _seaborn}


def _attribute(real: Callable[[], Any], name: str) -> Any:
    return getattr(real(), name)


@contextlib.contextmanager
def _drawing_later() -> Iterator[None]:
    """Within it, what gymnax imports to draw is a stand-in that imports the real module when it is first used.

    That is four fifths of the two seconds that importing gymnax takes, and training draws nothing with it.
    """
    stand_ins = {name: ModuleType(name) for name in _DRAWING if name not in sys.modules}
    for name, module in stand_ins.items():
        vars(module)["__getattr__"] = functools.partial(_attribute, _DRAWING[name])
    sys.modules.update(stand_ins)
    try:
        yield
    finally:
        for name, module in stand_ins.items():
            if sys.modules.get(name) is module:
                del sys.modules[name]


def adapt(made: Any, parameters: Any) -> FunctionalEnvironment:
    """A gymnax environment with these parameters as a FunctionalEnvironment. A plane of numbers is shown as a vector.

    0.x calls a time limit an end like any other; a step whose limit is far away says which it was. What the two have in
    common is computed once. 1.x has `is_truncated`; an environment that it lets have nothing but the `step` of six
    values, which resets itself, shows the true final observation in `info`.
    """
    space = gymnasium_space(made.observation_space(parameters))
    if plane := isinstance(space, spaces.Box) and len(space.shape) == 2:
        space = spaces.flatten_space(space)
    bare = hasattr(made, "step_env")
    tells = not bare or hasattr(made, "is_truncated")
    limited = not tells and hasattr(parameters, "max_steps_in_episode")
    endless = parameters.replace(max_steps_in_episode=np.iinfo(np.int32).max) if limited else parameters

    def show(observation: Any) -> Any:
        return jnp.ravel(observation) if plane else observation

    @_quietly
    def reset(key: Any) -> tuple[Any, Any]:
        observation, state = (made.reset_env if bare else made.reset)(key, parameters)
        return state, show(observation)

    @_quietly
    def step(key: Any, state: Any, action: Any) -> Transition:
        if not bare:
            _, after, reward, terminated, truncated, info = made.step(key, state, action, parameters)
            return _transition(after, show(info["final_observation"]), reward, terminated, truncated)
        observation, after, reward, ended, *_ = made.step_env(key, state, action, parameters)
        terminated, truncated = ended, False
        if tells:
            truncated = made.is_truncated(after, parameters)
        elif limited:
            terminated = made.step_env(key, state, action, endless)[3]
            truncated = jnp.asarray(ended) & ~jnp.asarray(terminated)
        return _transition(after, show(observation), reward, terminated, truncated)

    return FunctionalEnvironment(
        reset, step, space, gymnasium_space(made.action_space(parameters)), tells_truncation=tells or limited
    )


def _transition(state: Any, observation: Any, reward: Any, terminated: Any, truncated: Any) -> Transition:
    """Some of gymnax's rewards are bools, and some ends numbers; an end that is both is a real one."""
    terminated, truncated = jnp.asarray(terminated, bool), jnp.asarray(truncated, bool)
    return Transition(state, observation, jnp.asarray(reward, float), terminated, truncated & ~terminated)


def _quietly(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function without what it warns of while it is traced: of its own types, which nobody here can mend."""

    @functools.wraps(function)
    def quiet(*arguments: Any) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return function(*arguments)

    return quiet


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
    raise UnsupportedSpace(f"gymnax's space {one_line(repr(space))} is not supported")
