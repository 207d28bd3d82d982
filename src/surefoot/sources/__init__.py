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


def refuse_foreign_code(where: object, environment: str, *, allowed: bool) -> None:
    """Raise RunError where a file names an environment whose module would be imported, unless that is `allowed`."""
    if ":" in environment and not allowed:
        raise RunError(
            f"{where} names the environment {environment!r}, which runs code of that module; "
            "add --allow-env if it is yours (allow_env=True in Python)"
        )


def make_source(environment: str | Callable[[], Any], settings: config.Collection) -> Source:
    """The source that `settings.source` names, for a Gymnasium id, `package.module:callable` or a callable.

    `auto` takes EnvPool where it has the task and Gymnasium elsewhere. Raises EnvironmentNotFound,
    UnsupportedSpace.
    """
    named = isinstance(environment, str) and ":" not in environment
    if settings.source == "envpool" and not named:
        raise SettingError("source: envpool takes a Gymnasium id, not an environment of one's own; use gymnasium")
    if named and settings.source in ("auto", "envpool"):
        from surefoot.sources.envpool import envpool_source, has_environment

        if settings.source == "envpool" or has_environment(str(environment)):
            return envpool_source(str(environment), settings)

    from surefoot.sources.gymnasium import gymnasium_source

    return gymnasium_source(environment, settings)
