"""The exact engine: finite MDPs whose every value, identity and bound is computed."""

from surefoot.policy import TabularPolicy
from surefoot.tabular.evaluation import Evaluation, evaluate, state_laws
from surefoot.tabular.model import MDP, PolicyLike
from surefoot.tabular.optimal import Optimum, Sweep, policy_iteration, value_iteration
from surefoot.tabular.shift import (
    StateShift,
    maximal_coupling,
    mistake_law,
    overlap,
    sample_coupled,
    state_shift,
)
from surefoot.tabular.update import exact_batch, tabular_policy, update
