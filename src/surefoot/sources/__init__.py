"""Where experience comes from: one file a source. A new source is a file here and a line in `make_source`.

This module imports nothing slow: the worker processes of asynchronous environments import it too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from surefoot import config
from surefoot.errors import RunError, SettingError

if TYPE_CHECKING:
    from surefoot.sources.base import Source
    from surefoot.sources.functional import FunctionalEnvironment


LIBRARIES = ("gymnax",)
"""Libraries of environments written in JAX: what stands before the colon in the names of their tasks."""


def runs_code(environment: str) -> bool:
    """Whether a name makes a module of its own be imported, which runs whatever code that holds."""
    return ":" in environment and not environment.startswith(tuple(f"{library}:" for library in LIBRARIES))


def functional_environment(environment: str | Callable[[], Any]) -> FunctionalEnvironment | None:
    """The environment written in JAX that is meant; None for every other one.

    That is a task of one of LIBRARIES; a FunctionalEnvironment; and a callable, itself or as `package.module:callable`,
    whose annotation says that it returns one. Raises EnvironmentNotFound.
    """
    if isinstance(environment, str) and environment.startswith("gymnax:"):
        from surefoot.sources.gymnax import gymnax_environment

        return gymnax_environment(environment.removeprefix("gymnax:"))
    meant: Any = environment
    if isinstance(environment, str):
        if not runs_code(environment):
            return None
        from surefoot.sources.environments import attribute_of

        meant = attribute_of(environment)
    from surefoot.sources.functional import FunctionalEnvironment

    returned = getattr(meant, "__annotations__", {}).get("return", None)
    if callable(meant) and str(getattr(returned, "__name__", returned)).endswith(FunctionalEnvironment.__name__):
        meant = meant()
    return meant if isinstance(meant, FunctionalEnvironment) else None


def refuse_foreign_code(where: object, environment: str, *, allowed: bool) -> None:
    """Raise RunError where a file names an environment whose module would be imported, unless that is `allowed`."""
    if runs_code(environment) and not allowed:
        raise RunError(
            f"{where} names the environment {environment!r}, which runs code of that module; "
            "add --allow-env if it is yours (allow_env=True in Python)"
        )


def make_source(environment: str | Callable[[], Any], settings: config.Collection) -> Source:
    """The source that `settings.source` names, for a Gymnasium id, `package.module:callable` or a callable.

    `auto` takes EnvPool where it has the task and Gymnasium elsewhere. Raises EnvironmentNotFound,
    UnsupportedSpace.
    """
    if (made := functional_environment(environment)) is not None:
        from surefoot.sources.environments import environment_name
        from surefoot.sources.functional import FunctionalSource

        name = environment_name(environment)
        return FunctionalSource(made, name=name, envs=settings.envs, horizon=settings.horizon)
    named = isinstance(environment, str) and ":" not in environment
    if settings.source == "envpool" and not named:
        raise SettingError("source: envpool takes a Gymnasium id, not an environment of one's own; use gymnasium")
    if named and settings.source in ("auto", "envpool"):
        from surefoot.sources.envpool import envpool_source, has_environment

        if settings.source == "envpool" or has_environment(str(environment)):
            return envpool_source(str(environment), settings)

    from surefoot.sources.gymnasium import gymnasium_source

    return gymnasium_source(environment, settings)
