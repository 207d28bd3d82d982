"""Where experience comes from: one file a source. A new source is a file here and a line in `make_source`.

This module imports nothing slow: the worker processes of asynchronous environments import it too.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from surefoot import config
from surefoot.errors import RunError, SettingError

if TYPE_CHECKING:
    from surefoot.sources.base import Source
    from surefoot.sources.functional import FunctionalEnvironment


LIBRARIES = ("brax", "gymnax")
"""Libraries of environments written in JAX: what stands before the colon in the names of their tasks."""


def runs_code(environment: str) -> bool:
    """Whether a name makes a module of its own be imported, which runs whatever code that holds."""
    return ":" in environment and not environment.startswith(tuple(f"{library}:" for library in LIBRARIES))


def functional_environment(environment: str | Callable[[], Any]) -> FunctionalEnvironment | None:
    """The environment written in JAX that is meant; None for every other one.

    That is a task of one of LIBRARIES; a FunctionalEnvironment; and a callable, itself or as `package.module:callable`,
    whose annotation says that it returns one. Raises EnvironmentNotFound, UnsupportedSpace, and EnvironmentFault where
    it cannot be made or is none (see `contract.checked`).
    """
    from surefoot.sources.environments import attribute_of, environment_name, refuse_nameless

    meant: Any = environment
    if isinstance(environment, str):
        refuse_nameless(environment)
        if not runs_code(environment):
            return _task_of_a_library(environment) if ":" in environment else None
        meant = attribute_of(environment)
    if not callable(meant) and not hasattr(meant, "step"):
        return None
    name = environment_name(environment)
    try:
        hash(meant)
    except TypeError:
        return _understood.__wrapped__(meant, name)
    return _understood(meant, name)


@functools.lru_cache(maxsize=64)  # as the next; and what was compiled for an environment is for that very object
def _understood(meant: Any, name: str) -> FunctionalEnvironment | None:
    from surefoot.sources.contract import checked, made
    from surefoot.sources.functional import FunctionalEnvironment

    if _returned(meant).endswith(FunctionalEnvironment.__name__):
        meant = made(meant, name)
    return checked(meant, name) if isinstance(meant, FunctionalEnvironment) else None


def _returned(function: Any) -> str:
    """The name of what a callable's annotation says that it returns; empty where there is none."""
    while isinstance(function, functools.partial):
        function = function.func
    returned = getattr(function, "__annotations__", {}).get("return", "") if callable(function) else ""
    return str(getattr(returned, "__name__", returned))


@functools.cache  # a run asks for it three times, to train, to evaluate and to see whether it repeats
def _task_of_a_library(environment: str) -> FunctionalEnvironment:
    from surefoot.sources.contract import checked

    library, _, task = environment.partition(":")
    if library == "brax":
        from surefoot.sources.brax import brax_environment

        return checked(brax_environment(task), environment)
    from surefoot.sources.gymnax import gymnax_environment

    return checked(gymnax_environment(task), environment)


def caution(source: Source) -> str | None:
    """A line for whoever trains with this source of what it cannot tell apart; None where there is nothing to say."""
    environment = getattr(source, "environment", None)
    if getattr(environment, "tells_truncation", True):
        return None
    return (
        f"{source.name} does not tell a time limit from a real end: every end counts as one whose state has value 0, "
        "which biases values wherever episodes are cut"
    )


def refuse_foreign_code(where: object, environment: str, *, allowed: bool) -> None:
    """Raise RunError where a file names an environment whose module would be imported, unless that is `allowed`."""
    if runs_code(environment) and not allowed:
        raise RunError(
            f"{where} names the environment {environment!r}, which runs code of that module; "
            "add --allow-env if it is yours (allow_env=True in Python)"
        )


def make_source(
    environment: str | Callable[[], Any], settings: config.Collection, *, threads: int | None = None
) -> Source:
    """The source that `settings.source` names, for a Gymnasium id, `package.module:callable` or a callable.

    `auto` takes EnvPool where it has the task and Gymnasium elsewhere. With `settings.workers` it is one of Ray's
    workers, each with such a source of its own. `threads` are how many cores to use; by default all.

    Raises EnvironmentNotFound, UnsupportedSpace, SettingError.
    """
    if settings.workers is not None:
        from surefoot.sources.ray import ray_source

        return ray_source(environment, settings)
    if (made := functional_environment(environment)) is not None:
        from surefoot.sources.environments import environment_name
        from surefoot.sources.functional import FunctionalSource

        name = environment_name(environment)
        if (settings.devices or 1) > 1:
            raise SettingError(
                f"devices must be 1 for {name}, which is written in JAX and trained in one program, "
                f"but {settings.devices} came"
            )
        return FunctionalSource(made, name=name, envs=settings.envs, horizon=settings.horizon)
    named = isinstance(environment, str) and ":" not in environment
    if settings.source == "envpool" and not named:
        raise SettingError("source: envpool takes a Gymnasium id, not an environment of one's own; use gymnasium")
    if named and settings.source in ("auto", "envpool"):
        from surefoot.sources.envpool import envpool_source, has_environment

        if settings.source == "envpool" or has_environment(str(environment)):
            return envpool_source(str(environment), settings, threads)

    from surefoot.sources.gymnasium import gymnasium_source

    return gymnasium_source(environment, settings, threads)
