"""The loop of the exact engine: evaluate, enumerate, update, certify; nothing is sampled."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, NamedTuple

import equinox as eqx
import jax

from surefoot import config
from surefoot.certificate import Certificate, certify
from surefoot.errors import SettingError, did_you_mean
from surefoot.policy import TabularPolicy
from surefoot.rules import RULES, Rule, UpdateReport
from surefoot.tabular import MDP, PolicyLike, exact_batch, tabular_policy, update

EXACT_DEFAULTS: dict[str, Any] = {
    "damping": 0.0,
    "solver": "tabular",
    "subsample": 1.0,
    "standardise": False,
    "inner": "closed-form",
    "minibatch": 0,
    "step_size": 0.05,
}
"""Where exact batches ask for other settings than samples: the natural gradient and the penalised maximum of a
table are known in closed form, damping would drown the eigenvalues of states that are seldom met, and a logit
needs a longer way than a weight of a network."""


class Step(NamedTuple):
    """One exact update.

    Attributes:
        policy: the policy after it.
        report: the rule's own account; its gains are those of one step.
        certificate: the change's account in units of return.
    """

    policy: TabularPolicy
    report: UpdateReport
    certificate: Certificate


def exact_rule(name: str, **settings: Any) -> Rule:
    """The rule called `name` with the settings that suit exact batches, `EXACT_DEFAULTS`, and `settings`.

    Raises SettingError for a rule or setting that there is not.
    """
    if name not in RULES:
        raise SettingError(f"rule must be one of {', '.join(RULES)}, but {name!r} came{did_you_mean(name, RULES)}")
    known = [item.name for item in dataclasses.fields(config.RULES[name])]
    for setting in settings:
        if setting not in known:
            raise SettingError(f"{setting!r} is no setting of the rule {name}{did_you_mean(setting, known)}")
    return RULES[name](**{k: v for k, v in EXACT_DEFAULTS.items() if k in known} | settings)


def improve(mdp: MDP, rule: Rule, *, updates: int, policy: PolicyLike | None = None, seed: int = 0) -> Iterator[Step]:
    """`updates` exact updates of `rule`, each with its certificate, from the uniform policy or `policy`.

    The same update rules that train neural policies, on batches that list every state and action. A refused
    update that leaves the rule's memory alone too would be refused for ever: it is repeated, not computed.
    Raises ModelError, SettingError.
    """
    policy = tabular_policy(mdp.uniform() if policy is None else mdp.probabilities(policy))
    with jax.enable_x64(True):
        memory = rule.init(policy)
    key = jax.random.key(seed)
    for done in range(updates):
        key, update_key = jax.random.split(key)
        new, new_memory, report = update(rule, policy, memory, exact_batch(mdp, policy), update_key)
        step = Step(new, report, certify(policy, new, mdp))
        yield step
        if not report.accepted and eqx.tree_equal(memory, new_memory):
            yield from [step] * (updates - done - 1)
            return
        policy, memory = new, new_memory
