"""Disks that are full or read-only, folders that vanish, checkpoints that are not as they were written."""

import errno
import json
import os
import resource
import shutil

import numpy as np
import pytest

import surefoot as sf
from file_operations import watched
from runs import TINY, after, policy, rows
from surefoot import checkpoint, cli, files, history
from surefoot.errors import RunError, Stopped
from surefoot.files import held, write_atomically
from surefoot.record import differing_versions, versions
from surefoot.training import resume, train

SETTINGS = TINY | {"steps": 400, "checkpoint_seconds": 0, "progress": False}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An undisturbed run."""
    out = tmp_path_factory.mktemp("whole") / "run"
    train("CartPole-v1", out=out, **SETTINGS)
    return out


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """The same run, stopped after its third update, with a checkpoint of each."""
    out = tmp_path_factory.mktemp("stopped") / "run"
    with pytest.raises(Stopped):
        train("CartPole-v1", out=out, stop=after(3), **SETTINGS)
    return out


@pytest.fixture
def run(stopped, tmp_path):
    """A copy of the stopped run."""
    return shutil.copytree(stopped, tmp_path / "run")


def same(run, whole):
    assert rows(run) == rows(whole)
    assert policy(run) == policy(whole)


FULL, QUOTA, READ_ONLY, DENIED = errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES


def refusing(part, operation, number, code):
    """Refuses the given such change (from 1) of a part, and all changes of it after that."""
    left = number

    def before(kind, changed):
        nonlocal left
        left -= (changed, kind) == (part, operation)
        # What is there can still be removed from a full disk.
        return refuse if changed == part and left <= 0 and (kind, code) != ("unlink", FULL) else None

    def refuse():
        raise OSError(code, os.strerror(code))

    return before


ENDS = [  # what the run cannot do without: part, operation, which, code, file named, remedy
    ("config", "open", 1, READ_ONLY, "config.json", "make the file system writable"),
    ("metrics", "fsync", 1, QUOTA, "metrics.jsonl", "larger quota"),
    ("metrics", "write", 2, FULL, "metrics.jsonl", "free space there"),
    ("checkpoint arrays", "write", 1, FULL, "update-00000004.safetensors", "free space there"),
    ("checkpoint arrays", "open", 1, DENIED, "update-00000004.safetensors", "make the folder writable"),
    ("checkpoint description", "fsync", 1, QUOTA, "update-00000004.json", "larger quota"),
    ("checkpoint description", "replace", 1, READ_ONLY, "update-00000004.json", "make the file system writable"),
    ("policy tensors", "write", 1, FULL, "policy.safetensors", "free space there"),
    ("policy description", "write", 1, FULL, "policy.json", "free space there"),
    ("evaluation", "write", 1, FULL, "evaluation.json", "free space there"),
]


def told_by(capsys):
    """What surefoot said on standard error, how the run went aside."""
    return [line for line in capsys.readouterr().err.splitlines() if "steps/s" not in line]


def test_a_disk_that_refuses_ends_the_run_in_one_line_and_nothing_is_lost(run, whole, capsys):
    for part, operation, number, code, named, remedy in ENDS:
        before = {file: file.read_bytes() for file in (run / "checkpoints").glob("update*")}
        with watched(run, refusing(part, operation, number, code)):
            assert cli.main(["resume", str(run), "--json"]) == 2
        *passed_by, told = told_by(capsys)
        assert all("passed by: " in line or "going on from " in line for line in passed_by)  # half a checkpoint
        assert f"{named} cannot be written: {os.strerror(code)}" in told
        assert remedy in told
        assert told.endswith(f"; then: surefoot resume {run}")
        kept = [file for file in before if file.exists()]
        assert len(kept) >= 4
        assert all(file.read_bytes() == before[file] for file in kept if "00000004" not in file.name)
    assert cli.main(["resume", str(run), "--json"]) == 0
    same(run, whole)
    assert not list(run.rglob(".*"))


@pytest.mark.parametrize("part", ["curve", "report"])
def test_a_picture_that_cannot_be_written_costs_a_line_and_no_result(part, run, whole, capsys):
    with watched(run, refusing(part, "write", 1, FULL)):
        assert cli.main(["resume", str(run), "--json"]) == 0
    (told,) = told_by(capsys)
    assert "No space left on device" in told
    assert "the run is whole without it" in told
    assert json.loads((run / "evaluation.json").read_text())["return"]["episodes"] == 2
    same(run, whole)


def test_tensorboard_on_a_full_disk_costs_a_line_and_no_result(run, whole, monkeypatch, capsys):
    from tensorboardX.event_file_writer import EventsWriter

    events, write_event = [], EventsWriter.write_event

    def full(writer, event):
        events.append(event)
        if len(events) > 2:
            raise OSError(FULL, os.strerror(FULL))
        write_event(writer, event)

    monkeypatch.setattr(EventsWriter, "write_event", full)
    assert cli.main(["resume", str(run), "--json", "--tensorboard"]) == 0
    (told,) = told_by(capsys)
    assert "tensorboard cannot be written: No space left on device; the run goes on without it" in told
    same(run, whole)


def test_a_warning_tells_who_did_not_ask(run):
    with watched(run, refusing("curve", "write", 1, FULL)), pytest.warns(RuntimeWarning, match="whole without it"):
        resume(run, progress=False)


@pytest.mark.parametrize("number", [1, 2])
def test_a_new_run_in_a_folder_that_cannot_be_written_in_is_refused_before_training(number, tmp_path, monkeypatch):
    monkeypatch.setattr("surefoot.training.iterate", lambda *_: pytest.fail("trained"))
    out = tmp_path / "run"
    out.mkdir()
    part = ("config", "metrics")[number - 1]
    with watched(out, refusing(part, "open", 1, READ_ONLY)), pytest.raises(RunError, match="make the file system writ"):
        train("CartPole-v1", out=out, **SETTINGS)
    monkeypatch.undo()
    with pytest.raises(RunError, match=r"out: .*Not a directory"):
        train("CartPole-v1", out=f"{__file__}/run", **SETTINGS)


def test_a_limit_on_file_sizes_is_met_as_the_system_has_it(run, whole):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))
    try:
        with pytest.raises(RunError, match=r"cannot be written: File too large; allow larger files"):
            resume(run, progress=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    resume(run, progress=False)
    same(run, whole)


@pytest.mark.parametrize("gone", ["", "checkpoints", "metrics.jsonl"])
def test_what_is_removed_while_a_run_goes_on(gone, run, whole):
    def remove():
        path = run / gone
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        return False

    if gone == "checkpoints":  # is made anew with the next one
        once = iter([remove])
        resume(run, progress=False, stop=lambda: next(once, bool)())
        return same(run, whole)
    with pytest.raises(RunError, match=r"cannot be written: .*put the folder back") as caught:
        resume(run, progress=False, stop=remove)
    assert "\n" not in str(caught.value)
    assert run.exists() == bool(gone)  # a folder that somebody removed is not made again
    return None


def test_two_processes_do_not_train_in_one_folder(run, whole, tmp_path, capsys):
    with held(run):
        assert cli.main(["resume", str(run)]) == 2
        told = capsys.readouterr().err
        assert told == (
            f"surefoot: {run} is being trained in by another process; wait for it or end it, or name another folder\n"
        )
    (tmp_path / "new").mkdir()
    with held(tmp_path / "new"), pytest.raises(RunError, match="by another process"):
        train("CartPole-v1", out=tmp_path / "new", **SETTINGS)
    resume(run, progress=False)
    same(run, whole)


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    (tmp_path / "report.html").write_text("old")
    for operation in ("open", "write", "fsync", "replace"):
        with watched(tmp_path, refusing("report", operation, 1, FULL)), pytest.raises(RunError, match="free space"):
            write_atomically(tmp_path / "report.html", b"new")
        assert [file.name for file in tmp_path.iterdir()] == ["report.html"]
        assert (tmp_path / "report.html").read_text() == "old"


# Checkpoints


def flip(position):
    """Flip a bit at this share of a file."""

    def harm(file):
        content = bytearray(file.read_bytes())
        content[min(int(position * len(content)), len(content) - 1)] ^= 1
        file.write_bytes(bytes(content))

    return harm


def in_the_way(make):
    """Put something else in the file's place."""

    def harm(file):
        file.unlink()
        make(file)

    return harm


HARMS = {
    **{f"bit at {share:.3f}": flip(share) for share in (0, 1e-3, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 1)},
    "cut in half": lambda file: os.truncate(file, file.stat().st_size // 2),
    "a byte too few": lambda file: os.truncate(file, file.stat().st_size - 1),
    "a byte too many": lambda file: file.write_bytes(file.read_bytes() + b"x"),
    "empty": lambda file: os.truncate(file, 0),
    "missing": os.unlink,
    "a folder": in_the_way(os.mkdir),
    "a link to itself": in_the_way(lambda file: os.symlink(file, file)),
    "a pipe": in_the_way(os.mkfifo),
    "of the one before": lambda file: shutil.copy(file.with_stem("update-00000002"), file),
}


def passed(run, identity="a"):
    lines = []
    newest = next(checkpoint.found(run, identity, lines.append), None)
    return newest, lines


def few(folder):
    """Three checkpoints of a run "a"."""
    sound = []
    for update in (1, 2, 3):
        sound = checkpoint.write(folder, "a", update, {"a": np.arange(50) * update}, {"update": update}, sound)
    return folder


@pytest.mark.parametrize("part", ["json", "safetensors"])
@pytest.mark.parametrize("harm", HARMS)
def test_an_unsound_file_is_named_and_the_next_newest_is_taken(harm, part, tmp_path):
    few(tmp_path)
    HARMS[harm](tmp_path / "checkpoints" / f"update-00000003.{part}")
    names = sorted(os.listdir(tmp_path / "checkpoints"))
    newest, lines = passed(tmp_path)
    assert newest.update == 2
    np.testing.assert_array_equal(newest.arrays["a"], np.arange(50) * 2)
    assert len(lines) == 1
    assert "update-00000003." in lines[0]
    assert "\n" not in lines[0]
    assert sorted(os.listdir(tmp_path / "checkpoints")) == names


def renamed(folder):
    for kind in ("json", "safetensors"):
        shutil.copy(folder / f"update-00000002.{kind}", folder / f"update-00000009.{kind}")


def swapped(folder):
    os.rename(folder / "update-00000002.safetensors", folder / "other")
    os.rename(folder / "update-00000003.safetensors", folder / "update-00000002.safetensors")
    os.rename(folder / "other", folder / "update-00000003.safetensors")


def of_the_future(folder):
    described = json.loads((folder / "update-00000003.json").read_text()) | {"format_version": 2}
    del described["digest"]
    (folder / "update-00000003.json").write_bytes(checkpoint._sealed(described))


def of_another_run(folder):
    checkpoint.write(folder.parent, "b", 9, {"a": np.arange(50)}, {}, [])


@pytest.mark.parametrize(
    ("harm", "said", "newest"),
    [
        (renamed, "has another name than it was written under, update-00000002.json", 3),
        (swapped, "update-00000003.safetensors is not as it was written", 1),
        (of_the_future, "format_version 2 is not 1, the one read here", 2),
        (of_another_run, "is of another run", 3),
    ],
)
def test_sound_files_in_the_wrong_place_are_passed_by(harm, said, newest, tmp_path):
    few(tmp_path)
    harm(tmp_path / "checkpoints")
    found, lines = passed(tmp_path)
    assert found.update == newest
    assert said in lines[0]


def test_unsound_checkpoints_push_no_sound_one_out(tmp_path):
    folder = few(tmp_path) / "checkpoints"
    for update in (7, 8, 9):
        (folder / f"update-{update:08d}.json").write_text("{}")
    (folder / "update-00000009.safetensors").mkdir()
    sound = [3]
    for update in (4, 5, 6, 10, 11, 12):
        sound = checkpoint.write(tmp_path, "a", update, {"a": np.arange(2)}, {}, sound)
        newest, _ = passed(tmp_path)
        assert newest.update == update if update > 9 else newest is not None
        known = [one.update for one in checkpoint.found(tmp_path, "a", lambda line: None)]
        assert known[:3] == sorted({1, 2, 3, *range(4, 7), 10, 11, 12} & set(range(update + 1)))[::-1][:3]
    assert {file.name for file in folder.glob("*.json")} == {f"update-{n:08d}.json" for n in (10, 11, 12)}


def test_when_no_checkpoint_is_sound_the_run_begins_again_and_says_so(run, whole, capsys):
    for file in (run / "checkpoints").glob("*.json"):
        flip(0.5)(file)
    assert cli.main(["resume", str(run), "--json"]) == 0
    told = told_by(capsys)
    assert ["passed by: " in line for line in told] == [True, True, True, False]
    assert "no checkpoint is sound, so the run begins again from its config.json" in told[-1]
    same(run, whole)


def test_a_checkpoint_that_fits_in_its_bytes_and_not_in_its_meaning_is_passed_by(run, whole):
    identity = history.read(run).config["id"]
    checkpoint.write(run, identity, 9, {"learner/a": np.zeros(3)}, {"row": None}, [])
    told = []
    resume(run, progress=False, told=told.append)
    assert "update-00000009.json" in told[0]
    assert "update-00000003.json" in told[1]
    same(run, whole)


# Versions


def test_versions_that_differ_are_told_one_by_one():
    assert differing_versions(versions()) == []
    assert differing_versions(versions() | {"jax": "0.1"}) == [f"jax 0.1, now {versions()['jax']}"]
    assert len(differing_versions(None)) == len(versions())


def test_going_on_with_other_versions_says_that_bits_may_differ(run, whole, capsys):
    told = json.loads((run / "config.json").read_text())
    told["versions"]["jax"] = "0.1"
    (run / "config.json").write_text(json.dumps(told))
    assert cli.main(["resume", str(run), "--json"]) == 0
    line = f"the bits may differ from those of an undisturbed run: jax 0.1, now {versions()['jax']}"
    assert told_by(capsys) == [f"surefoot: {line}"]
    assert sf.load(run).environment == "CartPole-v1"
    same(run, whole)


def test_what_cannot_be_removed_or_moved_is_named(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("mine")
    with pytest.raises(RunError, match=r"folder cannot be written: .*take it away"):
        files.remove(tmp_path / "folder")
    with pytest.raises(RunError, match="folder cannot be written"):
        files.move(tmp_path / "folder", tmp_path / "full")
    files.remove(tmp_path / "nothing")
    assert (tmp_path / "full" / "file").read_text() == "mine"
