"""The rules: one file each, one interface for all. A new rule is a file here and a line below."""

from surefoot.rules.base import Memory, Rule, UpdateReport
from surefoot.rules.dual import Dual
from surefoot.rules.kl_penalty import KLPenalty
from surefoot.rules.npg import NPG
from surefoot.rules.pg import PG
from surefoot.rules.pi import PI
from surefoot.rules.ppo import PPO
from surefoot.rules.trpo import TRPO

RULES: dict[str, type[Rule]] = {rule.settings_class.name: rule for rule in (TRPO, NPG, PG, KLPenalty, Dual, PPO, PI)}
"""Every rule by the name that the command line and config.json use."""

__all__ = ["NPG", "PG", "PI", "PPO", "RULES", "TRPO", "Dual", "KLPenalty", "Memory", "Rule", "UpdateReport"]
