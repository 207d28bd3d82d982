"""`surefoot report`."""

from __future__ import annotations

import argparse
from typing import Any

from surefoot.errors import printable


def add(commands: Any) -> None:
    """The command and its options."""
    parser = commands.add_parser(
        "report",
        help="write a run, or several side by side, as one HTML page",
        description="Write what runs recorded as one HTML page that needs nothing else: learning curve, movement, "
        "promised and realised gain, estimated bounds, findings, settings.",
        allow_abbrev=False,
    )
    parser.add_argument("runs", metavar="RUN", nargs="+", help="a run's folder, finished or not")
    parser.add_argument(
        "--out", metavar="FILE", help="the page (default report.html: in the run's folder, or here for several runs)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object on standard output and nothing else")
    parser.set_defaults(command=run)


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Write the report, and tell where it is."""
    from surefoot.report.page import write_report

    file = write_report(arguments.runs, arguments.out)
    if not arguments.json:
        print(f"report  {printable(file)}")
    return {"report": str(file)}
