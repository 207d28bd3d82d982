"""Policy optimisation that knows how far it may step.

    import surefoot as sf
    run = sf.train("CartPole-v1", rule=sf.TRPO(radius=0.01), steps=100_000, seed=0)
    agent = sf.load(run.path)

    mdp = sf.tabular.load("FrozenLake-v1")
    for step in sf.improve(mdp, sf.exact_rule("npg"), updates=10):
        print(step.certificate.gain, step.certificate.best_bound)

Names are imported when first used, so that importing surefoot costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from surefoot._version import __version__

if TYPE_CHECKING:
    from surefoot import bounds, tabular
    from surefoot.agent import Agent, load
    from surefoot.certificate import Certificate, certify
    from surefoot.errors import (
        EnvironmentFault,
        EnvironmentNotFound,
        ModelError,
        RunError,
        SettingError,
        SurefootError,
        UnsupportedSpace,
    )
    from surefoot.evaluation import evaluate
    from surefoot.export import export_onnx
    from surefoot.improvement import exact_rule, improve
    from surefoot.policy import TabularPolicy
    from surefoot.replaying import Replay, replay
    from surefoot.rules import NPG, PG, PI, PPO, TRPO, Dual, KLPenalty, Rule, UpdateReport
    from surefoot.sources.functional import FunctionalEnvironment, Transition
    from surefoot.studies import Study, compare, resume_study, study
    from surefoot.training import Run, resume, train

_WHERE = {
    "Agent": "agent",
    "load": "agent",
    "export_onnx": "export",
    "Certificate": "certificate",
    "certify": "certificate",
    "EnvironmentFault": "errors",
    "EnvironmentNotFound": "errors",
    "ModelError": "errors",
    "RunError": "errors",
    "SettingError": "errors",
    "SurefootError": "errors",
    "UnsupportedSpace": "errors",
    "evaluate": "evaluation",
    "exact_rule": "improvement",
    "improve": "improvement",
    "TabularPolicy": "policy",
    "Replay": "replaying",
    "replay": "replaying",
    "NPG": "rules",
    "PG": "rules",
    "PI": "rules",
    "PPO": "rules",
    "Dual": "rules",
    "KLPenalty": "rules",
    "TRPO": "rules",
    "Rule": "rules",
    "UpdateReport": "rules",
    "Study": "studies",
    "compare": "studies",
    "resume_study": "studies",
    "study": "studies",
    "FunctionalEnvironment": "sources.functional",
    "Transition": "sources.functional",
    "Run": "training",
    "resume": "training",
    "train": "training",
}
_MODULES = ("bounds", "tabular")

__all__ = [
    "NPG",
    "PG",
    "PI",
    "PPO",
    "TRPO",
    "Agent",
    "Certificate",
    "Dual",
    "EnvironmentFault",
    "EnvironmentNotFound",
    "FunctionalEnvironment",
    "KLPenalty",
    "ModelError",
    "Replay",
    "Rule",
    "Run",
    "RunError",
    "SettingError",
    "Study",
    "SurefootError",
    "TabularPolicy",
    "Transition",
    "UnsupportedSpace",
    "UpdateReport",
    "__version__",
    "bounds",
    "certify",
    "compare",
    "evaluate",
    "exact_rule",
    "export_onnx",
    "improve",
    "load",
    "replay",
    "resume",
    "resume_study",
    "study",
    "tabular",
    "train",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"surefoot.{name}")
    if name not in _WHERE:
        raise AttributeError(f"module 'surefoot' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"surefoot.{_WHERE[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
