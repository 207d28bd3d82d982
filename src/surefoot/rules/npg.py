"""The natural policy gradient with a step to the KL radius."""

from __future__ import annotations

from typing import ClassVar

from jaxtyping import Array, Float, PRNGKeyArray

from surefoot import config
from surefoot.batch import Batch
from surefoot.geometry import movement
from surefoot.policy import Policy, flatten
from surefoot.rules.base import Memory, Rule, UpdateReport, choice, conclude, numeric
from surefoot.rules.natural import check_solver, check_subsample, chosen_subsample, measured, natural_step


class NPG(Rule):
    """theta' = theta + sqrt(2 radius / x^T F x) x, with F x = g.

    The natural gradient of Kakade 2001, scaled so that the quadratic model of KL(old || new) is the
    radius (Rajeswaran et al. 2017, equation 5). The true KL differs by a cubic remainder: nothing is
    backtracked.

    Differences from the source: (1) x solves (F + damping I) x = g by truncated conjugate gradients, on a
    subsample of the rows if asked; (2) the scale uses x^T F x without damping and on all rows, where the
    source has g^T F^-1 g; the two agree for an exact undamped solve; (3) advantages are standardised.
    """

    settings_class: ClassVar[type[config.RuleSettings]] = config.NPG

    radius: Float[Array, ""] = numeric(config.NPG.radius)
    eta: Float[Array, ""] | None = numeric(config.NPG.eta)
    solver: str = choice(config.NPG.solver)
    fisher: str = choice(config.NPG.fisher)
    constraint: str = choice(config.NPG.constraint)
    damping: Float[Array, ""] = numeric(config.NPG.damping)
    iterations: int = choice(config.NPG.iterations)
    tolerance: Float[Array, ""] = numeric(config.NPG.tolerance)
    subsample: float | None = choice(config.NPG.subsample)
    chunk: int = choice(config.NPG.chunk)
    standardise: bool = choice(config.NPG.standardise)

    def __post_init__(self) -> None:
        self.subsample = chosen_subsample(self)

    def __check_init__(self) -> None:
        check_subsample(self)

    def init(self, policy: Policy) -> Memory:
        check_solver(self, policy)
        return ()

    def update(
        self, policy: Policy, memory: Memory, batch: Batch, key: PRNGKeyArray
    ) -> tuple[Policy, Memory, UpdateReport]:
        rule = self.cast(policy)
        batch, unit = measured(rule, batch)
        proposal = natural_step(rule, policy, batch)
        theta, rebuild = flatten(policy)
        moved = movement(rebuild(theta + proposal.step), batch, chunk=rule.chunk)
        policy, report = conclude(policy, batch, proposal, moved, unit=unit)
        return policy, memory, report
