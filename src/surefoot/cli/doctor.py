"""`surefoot doctor`."""

from __future__ import annotations

import argparse
import textwrap
from typing import TYPE_CHECKING, Any

from surefoot.cli import studies
from surefoot.errors import RunError, printable

if TYPE_CHECKING:
    from surefoot.doctor import Examination, Finding

_WIDTH = 100


def add(commands: Any) -> None:
    """The command and its options."""
    parser = commands.add_parser(
        "doctor",
        help="say what is wrong with a run or a study, and what to do",
        description="Read what a run recorded and name what is wrong with it: the evidence, the cause and the remedy, "
        "worst first. Exit code 0: healthy, 1: there are findings, 2: no run that can be read.",
        allow_abbrev=False,
    )
    parser.add_argument("run", metavar="RUN", help="a run's folder, finished or not; or a study's, briefly")
    parser.add_argument("--json", action="store_true", help="print one JSON object on standard output and nothing else")
    parser.set_defaults(command=run, exit_code=lambda told: 0 if told["healthy"] else 1)


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Examine a run, and tell the findings. Raises RunError where there is nothing to examine."""
    from surefoot.doctor import examine
    from surefoot.history import read
    from surefoot.study_record import is_study

    if is_study(arguments.run):
        found = studies.examined(arguments.run)
        if not arguments.json:
            print("\n".join(studies.verdicts(found)))
        return found
    history = read(arguments.run)
    if not history.rows:
        raise RunError(f"{arguments.run} records no update yet")
    told = examine(history)
    if not told.made:
        raise RunError(f"{arguments.run} records nothing that any check needs")
    if not arguments.json:
        print(_text(told, printable(arguments.run)))
    return {
        "run": arguments.run,
        "healthy": not told.findings,
        "findings": [vars(finding).copy() for finding in told.findings],
        "unchecked": list(told.unchecked),
    }


def _text(told: Examination, run: str) -> str:
    looked = f"{_count(told.made, 'check')} over {_count(told.updates, 'update')} of {run}"
    if not told.findings:
        left = f"; {len(told.unchecked)} could not be made: {', '.join(told.unchecked)}" if told.unchecked else ""
        return f"healthy: {looked} found nothing{left}"
    parts = [f"{_count(len(told.findings), 'finding')}: {looked}"]
    parts += [_finding(number, finding) for number, finding in enumerate(told.findings, start=1)]
    if told.unchecked:
        reasons = [f"  {name}: {reason}" for name, reason in told.unchecked.items()]
        parts.append("\n".join(["not checked", *reasons]))
    return "\n\n".join(parts)


def _finding(number: int, finding: Finding) -> str:
    lines = [f"{number}. {finding.title}  [{finding.severity}: {finding.name}]"]
    for label in ("evidence", "cause", "remedy"):
        indent = f"   {label:<10}"
        lines.append(
            textwrap.fill(
                getattr(finding, label),
                _WIDTH,
                initial_indent=indent,
                subsequent_indent=" " * len(indent),
                break_on_hyphens=False,
            )
        )
    return "\n".join(lines)


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
