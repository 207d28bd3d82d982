"""The command: `surefoot train`, `resume`, `evaluate`, `doctor`, `report` and so on; one file each.

Options, their help and their legal ranges come from `surefoot.config`; nothing slow is imported before an
option was understood. Whatever the user got wrong is one line on standard error and exit code 2.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout

from surefoot._version import __version__
from surefoot.cli import certify, compare, doctor, evaluate, exact, export, lecture, replay, report, resume, train
from surefoot.cli.interruption import ended_by_signals
from surefoot.cli.options import EXAMPLE, Parser
from surefoot.errors import Stopped, SurefootError, printable
from surefoot.settings import dumps


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = Parser(
        prog="surefoot",
        description="Policy optimisation that knows how far it may step.",
        epilog=f"Start with: {EXAMPLE}",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"surefoot {__version__}")
    parser.set_defaults(exit_code=lambda result: 0)  # doctor has another
    commands = parser.add_subparsers(metavar="COMMAND", required=True, dest="command_name")
    for command in (train, compare, resume, evaluate, export, doctor, report, replay, exact, certify, lecture):
        command.add(commands)
    return parser


def _silence_dependencies() -> None:
    """What Gymnasium warns of is its own to mend, and what its workers log stands in our one line."""
    import gymnasium

    gymnasium.logger.min_level = gymnasium.logger.ERROR + 1
    warnings.filterwarnings("ignore", module="gymnasium")


@contextmanager
def _only_json() -> Iterator[None]:
    """Within it, what anybody prints, an environment's C code and its worker processes too, goes to standard error."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def _tell_everywhere() -> None:
    """What a terminal's encoding lacks (a file's name can hold anything) is printed as its code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    _tell_everywhere()
    try:
        arguments = build_parser().parse_args(argv)
    except SystemExit as done:
        return int(done.code or 0)
    # As a command it has nothing left to do after this but to end; called from Python, the handlers are the caller's,
    # and so are JAX's settings.
    arguments.own_process = argv is None
    with ended_by_signals(for_good=arguments.own_process):
        return _told(arguments)


def _told(arguments: argparse.Namespace) -> int:
    """Run a command, tell its result or what went wrong; returns the exit code."""
    try:
        _silence_dependencies()
        with _only_json() if arguments.json else nullcontext():
            result = arguments.command(arguments)
        if arguments.json:
            print(dumps(result), flush=True)
    except SurefootError as error:
        print(f"surefoot: {printable(error)}", file=sys.stderr)
        return 2
    except MemoryError:
        print("surefoot: there is not enough memory for what was asked; ask less of it", file=sys.stderr)
        return 2
    except Stopped as stopped:
        told, number = stopped.args
        print(f"surefoot: {told}", file=sys.stderr)
        return 128 + number
    except BrokenPipeError:
        # Whoever read our output (head, a pager) has had enough; Python would complain of it once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except KeyboardInterrupt:
        print("surefoot: stopped; what was recorded until then is in the run's folder", file=sys.stderr)
        return 130
    return arguments.exit_code(result)
