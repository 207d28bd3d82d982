"""`surefoot lecture`."""

from __future__ import annotations

import argparse
from typing import Any


def add(commands: Any) -> None:
    """The command and its options."""
    parser = commands.add_parser(
        "lecture",
        help="every claim of the lecture on trust regions, run, on one page",
        description="Run every claim behind trust regions on finite MDPs and write one self-contained page with "
        "figures: the claim, the function that computes it, the residual and the verdict.",
        allow_abbrev=False,
    )
    parser.add_argument("--out", metavar="DIR", help="the folder for the page (default: a new one in runs/)")
    parser.add_argument("--json", action="store_true", help="print one JSON object on standard output and nothing else")
    parser.set_defaults(command=run)


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Run the lecture, and tell where its page is."""
    from surefoot.lecture import write_page
    from surefoot.record import new_run_folder

    folder = new_run_folder(arguments.out, "lecture")
    result = write_page(folder, progress=not arguments.json)
    if not arguments.json:
        print(f"page        {result['page']}")
    return result
