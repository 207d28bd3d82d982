"""Making Gymnasium environments by name. Imports nothing slow: worker processes make theirs here."""

from __future__ import annotations

import functools
import importlib
import os
import signal
from collections.abc import Callable
from typing import Any

import gymnasium

from surefoot.errors import EnvironmentFault, EnvironmentNotFound, SurefootError, did_you_mean
from surefoot.sources.guard import Guarded, line, quiet

_WANTED = "a Gymnasium id, package.module:callable, or a callable that returns a gymnasium.Env"


def environment_name(environment: str | Callable[[], Any]) -> str:
    """The environment as the command line would name it."""
    if isinstance(environment, str):
        return environment
    while isinstance(environment, functools.partial):
        environment = environment.func
    return f"{environment.__module__}:{getattr(environment, '__qualname__', type(environment).__qualname__)}"


def maker(environment: str | Callable[[], Any], **options: Any) -> Callable[[], gymnasium.Env]:
    """A function without arguments that makes one environment, with `options` such as render_mode.

    `environment` is a Gymnasium id, `package.module:callable`, or a callable that returns an environment.
    Raises EnvironmentNotFound at once where there is no such environment.
    """
    if not isinstance(environment, str):
        if not callable(environment):
            raise EnvironmentNotFound(f"environment must be {_WANTED}, but {environment!r} came")
        return functools.partial(_call, environment, environment_name(environment), options)
    module_name, colon, attribute = environment.partition(":")
    near = ""
    if colon:
        module = _import(environment, module_name)
        function = getattr(module, attribute, None)
        if callable(function):
            return functools.partial(_call, function, environment, options)
        near = f"; module {module_name!r} has no callable {attribute!r}{did_you_mean(attribute, dir(module))}"
    try:
        gymnasium.spec(environment)
    except Exception as error:
        known = [name for name in gymnasium.registry if "/" not in name]
        near = near or did_you_mean(environment, known) or "; `CartPole-v1` is one to start with"
        raise EnvironmentNotFound(f"environment {environment!r} is not known to Gymnasium{near}") from error
    make = functools.partial(gymnasium.make, environment, disable_env_checker=True, **options)
    return functools.partial(_make, make, environment)


def guarded(make: Callable[[], gymnasium.Env], index: int, trainer: int) -> gymnasium.Env:
    """One environment that names itself when it fails. `trainer` is the id of the process that trains."""
    if os.getpid() != trainer:
        # A terminal's Ctrl-C reaches every process; what is done about it is up to the one that trains.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    return Guarded(make(), index)


def _import(environment: str, module_name: str) -> Any:
    try:
        return importlib.import_module(module_name)
    except Exception as error:
        raise EnvironmentNotFound(
            f"environment {environment!r}: module {module_name!r} cannot be imported ({line(error)}); "
            "write a Gymnasium id or package.module:callable"
        ) from error


def _make(make: Callable[[], gymnasium.Env], name: str) -> gymnasium.Env:
    try:
        with quiet():
            return make()
    except gymnasium.error.DeprecatedEnv as error:
        raise EnvironmentNotFound(f"environment {name!r} cannot be made: {line(error)}") from error
    except Exception as error:
        raise EnvironmentFault(f"environment {name!r} cannot be made: {line(error)}") from error


def _call(function: Callable[..., Any], name: str, options: dict[str, Any]) -> gymnasium.Env:
    try:
        with quiet():
            made = function(**options)
    except SurefootError:
        raise
    except Exception as error:
        raise EnvironmentFault(f"environment {name!r} cannot be made: {line(error)}") from error
    if not isinstance(made, gymnasium.Env):
        raise EnvironmentNotFound(
            f"environment {name!r} returned a {type(made).__name__}; it must return a gymnasium.Env"
        )
    return made
