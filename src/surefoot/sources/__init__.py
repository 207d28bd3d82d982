"""Where experience comes from: one file a source. A new source is a file here and a line in `make_source`.

This module imports nothing slow: the worker processes of asynchronous environments import it too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from surefoot import config

if TYPE_CHECKING:
    from surefoot.sources.base import Source


def make_source(environment: str | Callable[[], Any], settings: config.Collection) -> Source:
    """The source that `settings.source` names, for a Gymnasium id, `package.module:callable` or a callable.

    `auto` takes Gymnasium. Raises EnvironmentNotFound, UnsupportedSpace.
    """
    from surefoot.sources.gymnasium import gymnasium_source

    return gymnasium_source(environment, settings)
