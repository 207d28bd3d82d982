"""Trust region policy optimisation."""

from __future__ import annotations

from typing import ClassVar

from jaxtyping import Array, Float, PRNGKeyArray

from surefoot import config
from surefoot.batch import Batch
from surefoot.geometry import movement
from surefoot.policy import Policy, flatten
from surefoot.rules.base import Memory, Rule, UpdateReport, choice, conclude, numeric
from surefoot.rules.natural import (
    check_solver,
    check_subsample,
    chosen_subsample,
    constrained,
    measured,
    natural_step,
)
from surefoot.steps import backtrack, rescaling


class TRPO(Rule):
    """maximise the surrogate subject to mean KL(old || new) <= radius (Schulman et al. 2015, equation 14).

    With `constraint` "max" the largest KL over the batch's states is held instead (their equation 11), with
    `divergence` "reverse-kl" that of KL(new || old).

    The natural step to the radius (appendix C of the source), then backtracking on the true surrogate and
    the true KL: the first of `backtracks` + 1 ever shorter candidates whose mean KL is within the radius and
    whose surrogate gain is at least `accept` of the linear prediction. If there is none, the policy stays
    as it was.

    Differences from the source: (1) damping, and a subsample of the rows, while solving; the step's scale
    uses x^T F x without either; (2) the acceptance share, which the source's own code has and its text
    does not state; (3) advantages are standardised, with gains reported in reward units; (4) a candidate
    outside the radius is shortened to where its KL, growing quadratically, meets the radius, if that is less than
    by `shrink`: the full step misses the radius by a per cent or two about every other time, and would leave a
    third of it unused. With `rescale` off the candidates are the source's, theta + shrink^k step.
    """

    settings_class: ClassVar[type[config.RuleSettings]] = config.TRPO

    radius: Float[Array, ""] = numeric(config.TRPO.radius)
    solver: str = choice(config.TRPO.solver)
    fisher: str = choice(config.TRPO.fisher)
    constraint: str = choice(config.TRPO.constraint)
    damping: Float[Array, ""] = numeric(config.TRPO.damping)
    iterations: int = choice(config.TRPO.iterations)
    tolerance: Float[Array, ""] = numeric(config.TRPO.tolerance)
    subsample: float | None = choice(config.TRPO.subsample)
    divergence: str = choice(config.TRPO.divergence)
    backtracks: int = choice(config.TRPO.backtracks)
    shrink: Float[Array, ""] = numeric(config.TRPO.shrink)
    rescale: bool = choice(config.TRPO.rescale)
    accept: Float[Array, ""] = numeric(config.TRPO.accept)
    chunk: int = choice(config.TRPO.chunk)
    standardise: bool = choice(config.TRPO.standardise)

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

        def evaluate(scale):
            return movement(rebuild(theta + scale * proposal.step), batch, chunk=rule.chunk)

        def acceptable(scale, moved):
            gain = moved.surrogate_gain
            enough = (gain > 0) & (gain >= rule.accept * scale * proposal.predicted_gain)
            return enough & (constrained(moved, rule.constraint, rule.divergence) <= rule.radius)

        def shrink(moved):
            return rescaling(constrained(moved, rule.constraint, rule.divergence), rule.radius, rule.shrink)

        shorter = shrink if rule.rescale else rule.shrink
        search = backtrack(evaluate, acceptable, shrink=shorter, limit=rule.backtracks, dtype=theta.dtype)
        proposal = proposal._replace(
            scale=search.scale,
            acceptable=proposal.acceptable & search.accepted,
            backtracks=search.backtracks,
        )
        policy, report = conclude(policy, batch, proposal, search.evaluation, unit=unit)
        return policy, memory, report
