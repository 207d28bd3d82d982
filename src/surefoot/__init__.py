"""Policy optimisation that knows how far it may step.

    import surefoot as sf
    run = sf.train("CartPole-v1", rule=sf.TRPO(radius=0.01), steps=100_000, seed=0)
    agent = sf.load(run.path)

Names are imported when first used, so that importing surefoot costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from surefoot._version import __version__

if TYPE_CHECKING:
    from surefoot.agent import Agent, load
    from surefoot.errors import (
        EnvironmentFault,
        EnvironmentNotFound,
        RunError,
        SettingError,
        SurefootError,
        UnsupportedSpace,
    )
    from surefoot.evaluation import evaluate
    from surefoot.rules import NPG, PG, TRPO, Rule, UpdateReport
    from surefoot.training import Run, train

_WHERE = {
    "Agent": "agent",
    "load": "agent",
    "EnvironmentFault": "errors",
    "EnvironmentNotFound": "errors",
    "RunError": "errors",
    "SettingError": "errors",
    "SurefootError": "errors",
    "UnsupportedSpace": "errors",
    "evaluate": "evaluation",
    "NPG": "rules",
    "PG": "rules",
    "TRPO": "rules",
    "Rule": "rules",
    "UpdateReport": "rules",
    "Run": "training",
    "train": "training",
}

__all__ = [
    "NPG",
    "PG",
    "TRPO",
    "Agent",
    "EnvironmentFault",
    "EnvironmentNotFound",
    "Rule",
    "Run",
    "RunError",
    "SettingError",
    "SurefootError",
    "UnsupportedSpace",
    "UpdateReport",
    "__version__",
    "evaluate",
    "load",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'surefoot' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"surefoot.{_WHERE[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
