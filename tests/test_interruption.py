"""Ctrl-C and SIGTERM: the first ends a run after its update, the second at once; nothing that was written is lost."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from file_operations import watched
from runs import TINY, policy, rows
from surefoot import cli, ledger, record, training
from surefoot.sources.host import HostSource
from surefoot.training import resume, train

OPTIONS = ["--envs", "8", "--horizon", "16", "--hidden", "8", "--critic-hidden", "8", "--critic-epochs", "1"]
OPTIONS += ["--evaluation-episodes", "2", "--json"]
SETTINGS = TINY | {"steps": 400, "progress": False}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "run"
    train("CartPole-v1", out=out, **SETTINGS)
    return out


def signalled(function, signals, at=1):
    """The function, during whose call number `at` these signals arrive."""
    left = at

    def call(*arguments, **options):
        nonlocal left
        left -= 1
        if left == 0:
            for number in signals:
                os.kill(os.getpid(), number)
        return function(*arguments, **options)

    return call


class Ended(BaseException):
    """In the place of os._exit, after which nothing would run."""


def command(*line, monkeypatch):
    """The exit code of a command, and no change of a file once it has ended."""
    codes = []

    def end(code):
        codes.append(code)
        raise Ended

    def gone():
        raise Ended

    with monkeypatch.context() as patched, watched(Path(line[-1]), lambda *_: gone if codes else None):
        patched.setattr(os, "_exit", end)
        with contextlib.suppress(Ended):
            codes.append(cli.main(list(line)))
    return codes[0]


INT, TERM = signal.SIGINT, signal.SIGTERM
FIRST = "stopping after the update or evaluation under way; once more to end at once"
CASES = {  # where (an object, a function of it, which call), the signals, exit code, whether it says how to go on
    "while compiling, Ctrl-C": ((training, "iterate", 1), [INT], 130, True),
    "while compiling, twice": ((training, "iterate", 1), [INT, INT], 130, False),
    "in an update, SIGTERM": ((training, "iterate", 3), [TERM], 143, True),
    "in an update, SIGTERM twice": ((training, "iterate", 3), [TERM, TERM], 143, False),
    "in an update, Ctrl-C and SIGTERM": ((training, "iterate", 3), [INT, TERM], 143, False),
    "in the last update": ((training, "iterate", 4), [INT], 130, True),
    "in a checkpoint": ((ledger, "save", 2), [INT], 130, True),
    "in a checkpoint, twice": ((ledger, "save", 2), [INT, INT], 130, False),
    "in a row": ((record.Recorder, "append", 2), [INT, INT], 130, False),
    "in the curve, twice": ((training, "learning_curve", 1), [INT, INT], 130, False),
    "in the evaluation": ((training, "evaluate", 1), [INT], 0, False),
    "in the evaluation, twice": ((training, "evaluate", 1), [TERM, TERM], 143, False),
    "in the report, twice": ((training, "write_report", 1), [INT, INT], 130, False),
    "while the environments are made, twice": ((training, "make_source", 1), [INT, INT], 130, False),
}


QUICK = {"while compiling, Ctrl-C", "in an update, SIGTERM", "in the last update", "in a checkpoint, twice"}
QUICK |= {"in the evaluation"}


def unless(quick, *values):
    """A case, behind the marker unless it is among the quick ones."""
    return pytest.param(*values, marks=() if quick else pytest.mark.long)


@pytest.mark.parametrize("name", [unless(name in QUICK, name) for name in CASES])
def test_a_signal_ends_a_run_and_loses_nothing_that_was_written(name, whole, tmp_path, monkeypatch, capfd):
    (owner, function, at), signals, code, says_how = CASES[name]
    run = tmp_path / "run"
    line = ["train", "CartPole-v1", *OPTIONS, "--steps", "400", "--checkpoint-seconds", "0", "--out", str(run)]
    with monkeypatch.context() as patched:
        patched.setattr(owner, function, signalled(getattr(owner, function), signals, at))
        assert command(*line, monkeypatch=monkeypatch) == code
    told = capfd.readouterr().err
    assert "Traceback" not in told
    assert told.count(FIRST) == 1
    assert (f"go on with: surefoot resume {run}" in told) == says_how
    if (run / "config.json").exists():
        resume(run, progress=False)
    else:
        assert command(*line, monkeypatch=monkeypatch) == 0
    assert rows(run) == rows(whole)
    assert policy(run) == policy(whole)


@pytest.mark.parametrize(
    ("signals", "code"), [unless(False, [INT], 130), unless(False, [INT, INT], 130), unless(True, [TERM, TERM], 143)]
)
def test_a_signal_while_actions_are_replayed(signals, code, whole, tmp_path, monkeypatch, capfd):
    run = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        train("CartPole-v1", out=run, stop=iter([False, True]).__next__, **SETTINGS)
    files = {file: file.read_bytes() for file in run.rglob("update-*")}
    with monkeypatch.context() as patched:
        patched.setattr(HostSource, "_standing_at", signalled(HostSource._standing_at, signals))
        assert command("resume", "--json", str(run), monkeypatch=monkeypatch) == code
    assert "Traceback" not in capfd.readouterr().err
    assert all(file.read_bytes() == content for file, content in files.items())
    resume(run, progress=False)
    assert rows(run) == rows(whole)
    assert policy(run) == policy(whole)


PARTS = ["checkpoint arrays", "checkpoint description", "metrics", "policy tensors"]


@pytest.mark.parametrize("part", [unless(part == "checkpoint arrays", part) for part in PARTS])
def test_a_second_signal_inside_a_write_leaves_it_whole_or_undone(part, whole, tmp_path, monkeypatch, capfd):
    run = tmp_path / "run"
    line = ["train", "CartPole-v1", *OPTIONS, "--steps", "400", "--checkpoint-seconds", "0", "--out", str(run)]
    left = 2 if part != "policy tensors" else 1

    def before(operation, changed):
        nonlocal left
        left -= (operation, changed) == ("write", part)
        if left == 0:
            left -= 1
            for _ in range(2):
                os.kill(os.getpid(), INT)

    with watched(run, before):
        assert command(*line, monkeypatch=monkeypatch) == 130
    assert "Traceback" not in capfd.readouterr().err
    resume(run, progress=False, told=lambda line: None)  # half a checkpoint is passed by
    assert rows(run) == rows(whole)
    assert policy(run) == policy(whole)
    assert not list(run.rglob(".*"))


def start(*line, environment):
    return subprocess.Popen(
        [sys.executable, "-m", "surefoot.cli", *line],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=os.environ | environment,
    )


@pytest.mark.long
@pytest.mark.parametrize(
    "workers", [[], ["--source", "gymnasium", "--vectorisation", "async"]], ids=["alone", "workers"]
)
def test_signals_at_random_moments_show_no_traceback(workers, tmp_path, seed):
    """As a terminal and a service manager send them: to the process and to all it has started."""
    rng = np.random.default_rng(seed)
    environment = {"XDG_CACHE_HOME": str(tmp_path / "cache"), "JAX_ENABLE_COMPILATION_CACHE": "true"}
    options = ["CartPole-v1", *OPTIONS, "--steps", "4000", *workers]
    start("train", *options, "--out", str(tmp_path / "first"), environment=environment).communicate()  # compiles
    whole, run = tmp_path / "whole", tmp_path / "run"
    begun = time.monotonic()
    start("train", *options, "--out", str(whole), environment=environment).communicate()
    life = time.monotonic() - begun
    codes = []
    while len(codes) < 10:
        again = (run / "config.json").exists()
        line = ["resume", str(run), "--json"] if again else ["train", *options, "--out", str(run)]
        process = start(*line, environment=environment)
        # Before surefoot is there, Python itself ends by Ctrl-C as it does.
        time.sleep(rng.uniform(1.0, life))
        number, times = int(rng.choice([INT, TERM])), int(rng.integers(1, 3))
        for _ in range(times):
            if process.poll() is None:
                os.killpg(process.pid, number)
            time.sleep(rng.uniform(0, 0.1))
        _, told = process.communicate(timeout=100)
        assert "Traceback" not in told
        assert process.returncode in (0, 128 + number, -number), told  # the last while Python itself ends
        codes.append((number, times, process.returncode))
        if process.returncode == 0:
            assert rows(run) == rows(whole)
            assert policy(run) == policy(whole)
            shutil.rmtree(run)
    print(f"{len(codes)} starts with signals, exit codes {[code for *_, code in codes]}")
