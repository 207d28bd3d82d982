"""`surefoot report`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from surefoot.cli import studies
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
    parser.add_argument("runs", metavar="RUN", nargs="+", help="a run's folder, finished or not; or a study's")
    parser.add_argument(
        "--out",
        metavar="FILE",
        help="the page (default report.html: in the folder of the run or study, or here for several)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object on standard output and nothing else")
    parser.set_defaults(command=run)


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Write the report, and tell where it is."""
    from surefoot.report.page import write_report
    from surefoot.report.study import study_picture
    from surefoot.report.study_page import study_page
    from surefoot.study_record import is_study

    runs: list[str] = []
    out = arguments.out
    for given in arguments.runs:
        if is_study(given):
            runs += studies.reported(given)
            study_page(given)
            study_picture(given)
            if out is None and len(arguments.runs) == 1:
                out = Path(given) / "report.html"
        else:
            runs.append(given)
    file = write_report(runs, out)
    if not arguments.json:
        print(f"report  {printable(file)}")
    return {"report": str(file)}
