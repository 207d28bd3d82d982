"""Every change that surefoot makes in a folder, seen before it happens: to be counted, to fail, or to be the last.

As a program: python file_operations.py FOLDER PART NUMBER REPORT COMMAND..., which runs a surefoot command and kills
its process, with SIGKILL, at the given change (from 1) of that part of the run in FOLDER, having noted it in REPORT.
"""

import contextlib
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

Before = Callable[[str, str], Callable[[], None] | None]
"""Given the operation and the part of the run that it changes. What it returns is called in the change's place; of a
write, half is written before that."""

PARTS = (
    ("config", r"config\.json"),
    ("metrics", r"metrics\.jsonl"),
    ("evaluations", r"evaluations\.jsonl"),
    ("checkpoint arrays", r"checkpoints/update-\d+\.safetensors"),
    ("checkpoint description", r"checkpoints/update-\d+\.json"),
    ("checkpoint folder", r"checkpoints"),
    ("policy tensors", r"policy/policy\.safetensors"),
    ("policy description", r"policy/policy\.json"),
    ("policy folder", r"policy"),
    ("curve", r"learning_curve\.png"),
    ("evaluation", r"evaluation\.json"),
    ("report", r"report\.html"),
)


def part_of(run: Path, path: str) -> str | None:
    """Which part of a run a path is; None where it is none of this run."""
    path = os.path.abspath(path)
    if not path.startswith(f"{run}{os.sep}"):
        return None
    inside = re.sub(r"(^|/)\.(.*)\.\d+\.surefoot-partial$", r"\1\2", path[len(str(run)) + 1 :])
    return next((part for part, pattern in PARTS if re.fullmatch(pattern, inside)), None)


@contextlib.contextmanager
def watched(run: Path, before: Before) -> Iterator[None]:
    """Within it every change of a run's files is told to `before` first."""
    real = {name: getattr(os, name) for name in ("open", "write", "fsync", "replace", "unlink", "mkdir", "ftruncate")}
    run = Path(os.path.abspath(run))

    def instead(operation: str, path: str) -> Callable[[], None] | None:
        part = part_of(run, path)
        return before(operation, part) if part else None

    def path_of(descriptor: int) -> str:
        try:
            return os.readlink(f"/proc/self/fd/{descriptor}")
        except OSError:
            return ""

    def open_(path, flags, *arguments, **options):
        if flags & (os.O_WRONLY | os.O_RDWR) and (do := instead("open", str(path))):
            return do()
        return real["open"](path, flags, *arguments, **options)

    def write(descriptor, content):
        if do := instead("write", path_of(descriptor)):
            real["write"](descriptor, bytes(content)[: len(content) // 2])
            return do()
        return real["write"](descriptor, content)

    def of_descriptor(name):
        def call(descriptor, *arguments):
            do = instead(name, path_of(descriptor))
            return do() if do else real[name](descriptor, *arguments)

        return call

    def of_path(name):
        def call(path, *arguments, **options):
            do = instead(name, str(path))
            return do() if do else real[name](path, *arguments, **options)

        return call

    os.open, os.write = open_, write
    for name in ("fsync", "ftruncate"):
        setattr(os, name, of_descriptor(name))
    for name in ("replace", "unlink", "mkdir"):
        setattr(os, name, of_path(name))
    try:
        yield
    finally:
        for name, function in real.items():
            setattr(os, name, function)


def main(run: str, part: str, number: str, report: str, *command: str) -> int:
    from surefoot.cli import main as surefoot

    left = int(number)

    def before(operation: str, changed: str) -> Callable[[], None] | None:
        nonlocal left
        left -= changed == part

        def die() -> None:
            Path(report).write_text(operation)
            os.kill(os.getpid(), signal.SIGKILL)

        return die if changed == part and left == 0 else None

    with watched(Path(run), before):
        return surefoot(list(command))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
