"""What a check is, and what it says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from surefoot.doctor.record import Record

Severity = Literal["severe", "warning"]


@dataclass(frozen=True)
class Finding:
    """Something wrong with a run.

    Attributes:
        name: which check found it, such as "first-ratio".
        severity: "severe" where the run's numbers or its policy cannot be relied on, else "warning".
        title: what is wrong, in one plain line.
        evidence: the numbers seen: which updates, how many of how many.
        cause: what it comes from.
        remedy: what to type or to change.
    """

    name: str
    severity: Severity
    title: str
    evidence: str
    cause: str
    remedy: str


@dataclass(frozen=True)
class Seen:
    """What a check saw: the evidence, and what it knows better than the check's own words.

    Attributes:
        evidence: the numbers.
        title: in place of the check's, where it is not None; so with all that follow.
        cause: likewise.
        remedy: likewise.
        severity: likewise.
    """

    evidence: str
    title: str | None = None
    cause: str | None = None
    remedy: str | None = None
    severity: Severity | None = None


@dataclass(frozen=True)
class Check:
    """One thing that is looked for.

    Attributes:
        name: its id, in kebab-case.
        severity: of its findings.
        looks_at: the metrics that it reads, for the documents.
        threshold: when it speaks, for the documents.
        title: what is wrong then.
        cause: what it comes from.
        remedy: what to type or to change.
        judge: from a run's record to what was seen, or None where nothing is wrong; raises Unjudged.
    """

    name: str
    severity: Severity
    looks_at: str
    threshold: str
    title: str
    cause: str
    remedy: str
    judge: Callable[[Record], Seen | None]

    def finding(self, record: Record) -> Finding | None:
        """What this check finds in a run, or None. Raises Unjudged where the record does not tell."""
        seen = self.judge(record)
        if seen is None:
            return None
        told: dict[str, Any] = {
            word: getattr(seen, word) or getattr(self, word) for word in ("severity", "title", "cause", "remedy")
        }
        return Finding(name=self.name, evidence=seen.evidence, **told)
