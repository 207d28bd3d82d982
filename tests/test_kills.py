"""A run is killed at any moment, goes on, and ends with the same bits."""

import collections
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import file_operations
from file_operations import watched
from runs import TINY, evaluations, policy, rows
from surefoot.training import resume, train


class Killed(BaseException):
    """Stands for the end of a process: from then on no change of a file is made."""


def killed_at(run, part, number, go):
    """Call `go`, whose process as it were ends at this change (from 1) of this part of the run."""
    left = number

    def before(operation, changed):
        nonlocal left
        left -= changed == part
        return die if left <= 0 else None

    def die():
        raise Killed

    with watched(run, before), pytest.raises(Killed):
        go()


# Of every file there are four changes in turn: opening, writing (of which half is done), making it last, renaming.
PLACES = [
    ("config", 2),
    ("metrics", 7),
    ("evaluations", 2),
    ("evaluations", 6),
    ("checkpoint arrays", 2),
    ("checkpoint arrays", 8),
    ("checkpoint description", 2),
    ("checkpoint description", 7),
    ("policy tensors", 4),
    ("policy description", 2),
    ("evaluation", 4),
    ("report", 2),
]


def test_a_run_that_ends_inside_any_write_goes_on_to_the_same_bits(tmp_path):
    settings = TINY | {"steps": 600, "checkpoint_seconds": 0, "progress": False, "evaluate_every": 200}
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train("CartPole-v1", out=whole, **settings)
    for part, number in PLACES:
        if (parts / "config.json").exists():
            killed_at(parts, part, number, lambda: resume(parts, progress=False, told=lambda line: None))
        else:
            killed_at(parts, part, number, lambda: train("CartPole-v1", out=parts, **settings))
    resume(parts, progress=False, told=lambda line: None)
    assert rows(parts) == rows(whole)
    assert evaluations(parts) == evaluations(whole)
    assert policy(parts) == policy(whole)
    assert (parts / "evaluation.json").read_bytes() == (whole / "evaluation.json").read_bytes()
    names = [{file.name for file in run.rglob("*") if file.parent.name != "checkpoints"} for run in (whole, parts)]
    assert names[0] == names[1]  # nothing half written is left over
    assert not list(parts.glob("checkpoints/.*"))


PARTS = {  # of a run in its processes' own time: which of the changes of a file to die at, at most
    **dict.fromkeys(("config", "policy tensors", "policy description", "curve", "evaluation", "report"), 4),
    **dict.fromkeys(("metrics", "checkpoint arrays", "checkpoint description"), 40),
}
OPTIONS = ["--envs", "8", "--horizon", "16", "--hidden", "8", "--critic-hidden", "8", "--critic-epochs", "1"]
OPTIONS += ["--steps", "20000", "--evaluation-episodes", "2", "--checkpoint-seconds", "0", "--json"]


class Runs:
    """Starts the command on runs of one kind, kills it, and counts."""

    def __init__(self, folder, rng, source):
        self.folder, self.rng = folder, rng
        self.options = ["CartPole-v1", *OPTIONS, "--source", source]
        # As a user would have it, programs are kept between processes.
        cache = {"XDG_CACHE_HOME": str(folder / "cache"), "JAX_ENABLE_COMPILATION_CACHE": "true"}
        self.environment = os.environ | cache
        self.phases: collections.Counter = collections.Counter()
        self.without_checkpoint = 0

    def start(self, run, program=("-m", "surefoot.cli")):
        if (run / "config.json").exists():
            command = ["resume", str(run), "--json"]
            self.without_checkpoint += not any(run.glob("checkpoints/*.json"))
        else:
            command = ["train", *self.options, "--out", str(run)]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True, "env": self.environment}
        return subprocess.Popen([sys.executable, *program, *command], **quiet)

    def whole(self, run):
        """An undisturbed run: its wall time."""
        begun = time.monotonic()
        self.ended(self.start(run))
        return time.monotonic() - begun

    def kill_after(self, run, seconds):
        """Whether the process was killed, as it is unless it ends before that."""
        before = recorded(run)
        process = self.start(run)
        try:
            process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.communicate()
            starting = recorded(run) == before
            ending = (run / "policy").exists()
            self.phases["starting" if starting else "ending" if ending else "training"] += 1
            return True
        self.ended(process)
        return False

    def kill_in(self, run, part, number):
        """As `kill_after`, at a change of a file."""
        noted = self.folder / "noted"
        process = self.start(run, (file_operations.__file__, str(run), part, str(number), str(noted)))
        _, told = process.communicate()
        if process.returncode == -signal.SIGKILL:
            self.phases[f"{part}: {noted.read_text()}"] += 1
            return True
        assert process.returncode == 0, told
        return False

    def ended(self, process):
        _, told = process.communicate()
        assert process.returncode == 0, told


def recorded(run):
    metrics = run / "metrics.jsonl"
    return metrics.stat().st_size if metrics.exists() else 0


@pytest.mark.long
@pytest.mark.parametrize(("source", "kills"), [("envpool", 50), ("gymnasium", 8)])
def test_a_process_killed_at_random_moments_ends_with_the_same_bits(source, kills, tmp_path, seed):
    rng = np.random.default_rng(seed)
    begun = time.monotonic()
    runs = Runs(tmp_path, rng, source)
    whole = tmp_path / "whole"
    runs.whole(tmp_path / "first")  # which compiles
    life = runs.whole(whole)
    runs.without_checkpoint = 0
    killed, finished, run = 0, 0, tmp_path / "parts-0"
    while killed < kills:
        if killed % 2:
            part = str(rng.choice(list(PARTS)))
            dead = runs.kill_in(run, part, int(rng.integers(1, PARTS[part] + 1)))
        else:
            dead = runs.kill_after(run, rng.uniform(0, life))
        killed += dead
        if not dead:  # it came to its end, so another takes its place
            same(run, whole)
            finished += 1
            run = Path(f"{tmp_path}/parts-{finished}")
    runs.whole(run)
    same(run, whole)
    print(f"{killed} kills by SIGKILL in {finished + 1} runs of {len(rows(whole))} updates ({source}), none lost")
    print(f"starts without a checkpoint {runs.without_checkpoint}; {time.monotonic() - begun:.0f} s")
    for phase, count in sorted(runs.phases.items()):
        print(f"  {phase:32} {count}")


def same(run, whole):
    assert rows(run) == rows(whole)
    assert policy(run) == policy(whole)
    assert (run / "evaluation.json").read_bytes() == (whole / "evaluation.json").read_bytes()
