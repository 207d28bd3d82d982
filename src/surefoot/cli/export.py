"""`surefoot export`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from surefoot.errors import printable


def add(commands: Any) -> None:
    """The command and its options."""
    parser = commands.add_parser(
        "export",
        help="write a trained policy as one file for other machines",
        description="Write the policy of a run, its normaliser and the mapping of its actions included, as one file "
        "that other programs can run.",
        allow_abbrev=False,
    )
    parser.add_argument("run", metavar="RUN", help="a run's folder")
    parser.add_argument("--to", choices=["onnx"], required=True, help="the file's format")
    parser.add_argument("--out", metavar="FILE", help="the file (default: policy/policy.onnx in the run)")
    parser.add_argument("--json", action="store_true", help="print one JSON object on standard output and nothing else")
    parser.set_defaults(command=run)


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Export, and tell what the file takes and gives."""
    from surefoot.agent import load, policy_folder
    from surefoot.export import export_onnx, interface

    agent = load(arguments.run)
    file = export_onnx(agent, arguments.out or policy_folder(arguments.run) / "policy.onnx")
    inputs, outputs = interface(file)
    if not arguments.json:
        print(f"file     {printable(file)}  ({Path(file).stat().st_size / 1024:.0f} KiB)")
        for title, values in (("takes", inputs), ("gives", outputs)):
            for name, told in values.items():
                print(f"{title:<9}{name}  {told}")
    return {"run": arguments.run, "file": str(file), "inputs": inputs, "outputs": outputs}
