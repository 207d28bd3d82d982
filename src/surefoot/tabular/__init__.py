"""The exact engine: finite MDPs whose every value, identity and bound is computed."""

from surefoot.policy import TabularPolicy
from surefoot.tabular import identities, library, penalty, simulation
from surefoot.tabular.evaluation import Evaluation, evaluate, state_laws
from surefoot.tabular.files import read_mdp, read_policy, save_mdp
from surefoot.tabular.model import MDP, PolicyLike
from surefoot.tabular.optimal import Optimum, Sweep, modified_policy_iteration, policy_iteration, value_iteration
from surefoot.tabular.shift import (
    StateShift,
    maximal_coupling,
    mistake_law,
    overlap,
    sample_coupled,
    state_shift,
)
from surefoot.tabular.toy_text import from_gymnasium, load
from surefoot.tabular.update import exact_batch, tabular_policy, update

__all__ = [
    "MDP",
    "Evaluation",
    "Optimum",
    "PolicyLike",
    "StateShift",
    "Sweep",
    "TabularPolicy",
    "evaluate",
    "exact_batch",
    "from_gymnasium",
    "identities",
    "library",
    "load",
    "maximal_coupling",
    "mistake_law",
    "modified_policy_iteration",
    "overlap",
    "penalty",
    "policy_iteration",
    "read_mdp",
    "read_policy",
    "sample_coupled",
    "save_mdp",
    "simulation",
    "state_laws",
    "state_shift",
    "tabular_policy",
    "update",
    "value_iteration",
]
