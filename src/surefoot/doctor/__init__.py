"""What is wrong with a run, from what it recorded: findings with evidence, cause and remedy.

Imports nothing of surefoot but `history` and `errors`, and changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from surefoot.doctor import learning, policy, updates
from surefoot.doctor.finding import Check, Finding
from surefoot.doctor.record import FEWEST_UPDATES, Record, Unjudged
from surefoot.history import History

__all__ = ["CHECKS", "FEWEST_UPDATES", "Check", "Examination", "Finding", "diagnose", "examine"]

CHECKS: tuple[Check, ...] = (
    updates.FIRST_RATIO,
    policy.RETURN_COLLAPSED,
    policy.COLLAPSED,
    learning.REWARD_SCALE,
    updates.REFUSALS,
    updates.SOLVER,
    updates.KL_MODEL,
    updates.LEFT_TRUST_REGION,
    updates.NORMALISER_DRIFT,
    learning.GAIN,
    learning.CRITIC,
    learning.TRUNCATION,
    policy.SATURATION,
    learning.NOT_REPEATABLE,
)
"""Every check, worst first among those of one severity."""


@dataclass(frozen=True)
class Examination:
    """Everything that the checks say of a run.

    Attributes:
        findings: worst first.
        unchecked: for each check that could not be made, by name, the reason.
        updates: how many updates were looked at.
    """

    findings: list[Finding]
    unchecked: dict[str, str]
    updates: int

    @property
    def made(self) -> int:
        """How many checks were made."""
        return len(CHECKS) - len(self.unchecked)


def examine(history: History) -> Examination:
    """Make every check that the history allows. Raises RunError where a metric holds something that is no number."""
    record, findings, unchecked = Record(history), [], {}
    with np.errstate(all="ignore"):
        for check in CHECKS:
            try:
                found = check.finding(record)
            except Unjudged as reason:
                unchecked[check.name] = str(reason)
            else:
                findings += [found] if found else []
    # The sort is stable: within a severity the order of CHECKS stays.
    findings.sort(key=lambda finding: finding.severity != "severe")
    return Examination(findings, unchecked, record.updates)


def diagnose(history: History) -> list[Finding]:
    """What is wrong with a run, worst first; empty where every check that could be made found nothing.

    Raises RunError where a metric holds something that is no number.
    """
    return examine(history).findings
