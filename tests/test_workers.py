"""Studies whose runs are made by Ray's workers: the same runs, whoever makes them, and whatever becomes of some."""

import os
import signal
import subprocess
import threading
import time
from functools import partial

import pytest

import probes
import ray_nodes
import surefoot as sf
from runs import TINY, policy, rows
from surefoot import cli
from surefoot.errors import Stopped
from surefoot.studies import compare, resume_study, study
from surefoot.study_record import FAILED, FINISHED

pytest.importorskip("ray")

SETTINGS = TINY | {"steps": 500, "progress": False}


@pytest.fixture(autouse=True)
def cluster():
    return ray_nodes.two_nodes()


def folders(study):
    return sorted(path.name for path in (study / "runs").iterdir())


def test_a_comparison_by_workers_is_the_one_made_in_turn(tmp_path):
    compare("CartPole-v1", ["pg", "npg"], seeds=2, out=tmp_path / "turn", **SETTINGS)
    done = compare("CartPole-v1", ["pg", "npg"], seeds=2, workers=3, out=tmp_path / "spread", **SETTINGS)
    assert [member.status for member in done.runs] == [FINISHED] * 4
    assert folders(tmp_path / "spread") == folders(tmp_path / "turn")
    for run in folders(tmp_path / "turn"):
        one, other = (tmp_path / which / "runs" / run for which in ("turn", "spread"))
        assert rows(one) == rows(other)
        assert policy(one) == policy(other)
    assert not (tmp_path / "spread" / "stop").exists()
    # More seeds of it: what is finished is not made again.
    before = {
        run: (tmp_path / "spread" / "runs" / run / "evaluation.json").stat().st_mtime_ns
        for run in folders(tmp_path / "turn")
    }
    more = compare("CartPole-v1", ["pg", "npg"], seeds=3, workers=3, out=tmp_path / "spread", **SETTINGS)
    assert [member.status for member in more.runs] == [FINISHED] * 6
    for run, when in before.items():
        assert (tmp_path / "spread" / "runs" / run / "evaluation.json").stat().st_mtime_ns == when


def test_a_run_that_fails_stops_no_other_and_says_why(tmp_path):
    environment = partial(probes.Once, "raises", 40, str(tmp_path / "flag"))
    done = study(environment, "pg", seeds=3, workers=2, out=tmp_path / "study", **SETTINGS)
    assert sorted(member.status for member in done.runs) == [FAILED, FINISHED, FINISHED]
    (failed,) = (member for member in done.runs if member.status == FAILED)
    assert "the licence server did not answer" in failed.error
    told = []
    again = resume_study(tmp_path / "study", environment=environment, workers=2, progress=False, told=told.append)
    assert "no checkpoint is sound, so the run begins again" in told[0]  # it had failed before its first
    assert [member.status for member in again.runs] == [FINISHED] * 3


def makers():
    """Processes of workers that make a run."""
    told = subprocess.run(["ps", "-eo", "pid,args"], capture_output=True, text=True, check=True).stdout
    return [int(line.split()[0]) for line in told.splitlines() if "ray::_made" in line]


def test_a_worker_that_is_killed_is_replaced_and_its_run_goes_on(tmp_path):
    settings = SETTINGS | {"steps": 6000, "checkpoint_seconds": 0}
    study("CartPole-v1", "pg", seeds=2, out=tmp_path / "turn", **settings)
    killed = []

    def kill():
        until = time.monotonic() + 60
        while not killed and time.monotonic() < until:
            under_way = list((tmp_path / "spread").glob("runs/*/checkpoints/*"))
            if under_way and (found := makers()):
                os.kill(found[0], signal.SIGKILL)
                killed.append(found[0])
            time.sleep(0.05)

    killer = threading.Thread(target=kill)
    killer.start()
    done = study("CartPole-v1", "pg", seeds=2, workers=2, out=tmp_path / "spread", **settings)
    killer.join()
    assert killed
    assert [member.status for member in done.runs] == [FINISHED] * 2
    for run in folders(tmp_path / "turn"):
        assert policy(tmp_path / "turn" / "runs" / run) == policy(tmp_path / "spread" / "runs" / run)


def test_a_study_that_is_stopped_leaves_checkpoints_and_goes_on_to_the_same_bits(tmp_path):
    settings = SETTINGS | {"steps": 40_000, "checkpoint_seconds": 0.3}
    study("CartPole-v1", "pg", seeds=2, out=tmp_path / "turn", **settings)
    begun = time.monotonic()

    def stop():
        return any((tmp_path / "study").glob("runs/*/checkpoints/*")) or time.monotonic() - begun > 60

    with pytest.raises(Stopped, match=r"[01] of 2 runs finished; go on with: surefoot resume"):
        study("CartPole-v1", "pg", seeds=2, workers=1, out=tmp_path / "study", stop=stop, **settings)
    assert list((tmp_path / "study").glob("runs/*/checkpoints/*"))
    done = resume_study(tmp_path / "study", workers=2, progress=False)
    assert [member.status for member in done.runs] == [FINISHED] * 2
    for run in folders(tmp_path / "turn"):
        assert policy(tmp_path / "turn" / "runs" / run) == policy(tmp_path / "study" / "runs" / run)


class Stopping(BaseException):
    pass


def test_a_study_that_is_given_up_leaves_no_run_under_way(tmp_path):
    asked = iter(range(100))

    def stop():
        if any((tmp_path / "study").glob("runs/*/checkpoints/*")) or next(asked) > 60:
            raise Stopping
        return False

    settings = SETTINGS | {"steps": 1_000_000, "checkpoint_seconds": 0}
    with pytest.raises(Stopping):
        study("CartPole-v1", "pg", seeds=2, workers=2, out=tmp_path / "study", stop=stop, **settings)
    until = time.monotonic() + 30
    while makers() and time.monotonic() < until:
        time.sleep(0.2)
    assert not makers()


class Refusing(sf.PG):
    """A rule of one's own with the settings of pg, which says that it is not pg."""

    def update(self, *arguments):
        raise ValueError("this is not pg")


def test_a_rule_of_ones_own_is_not_replaced_by_the_one_whose_settings_it_has(tmp_path):
    done = study("CartPole-v1", Refusing(), seeds=1, workers=1, out=tmp_path / "study", **SETTINGS)
    assert [member.status for member in done.runs] == [FAILED]
    assert "this is not pg" in done.runs[0].error


def test_a_study_in_a_folder_of_this_process_is_found_by_workers_in_theirs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = study("CartPole-v1", "pg", seeds=1, workers=1, out="here", **SETTINGS)
    assert [member.status for member in done.runs] == [FINISHED]
    assert (tmp_path / "here" / "runs").is_dir()


def test_what_only_the_workers_of_one_run_have_is_refused_in_a_study(tmp_path, capsys):
    with pytest.raises(sf.SettingError, match=r"enough must be 1.0 in a study, whose workers make a run each, but 0.5"):
        study("CartPole-v1", "pg", seeds=2, workers=2, enough=0.5, out=tmp_path / "study", **SETTINGS)
    assert cli.main(["train", "CartPole-v1", "--seeds", "2", "--workers", "2", "--enough", "0.5"]) == 2
    assert "enough must be 1.0 in a study" in capsys.readouterr().err
    with pytest.raises(sf.SettingError, match="sweep: workers is not swept"):
        study("CartPole-v1", "pg", sweep={"workers": [1, 2]}, out=tmp_path / "study", **SETTINGS)


def test_lanes_and_workers_and_an_address_without_workers_are_refused(tmp_path):
    with pytest.raises(sf.SettingError, match="lanes are of one process"):
        study("CartPole-v1", "pg", lanes=2, workers=2, out=tmp_path / "study", **SETTINGS)
    with pytest.raises(sf.SettingError, match="ray_address must be None without workers"):
        study("CartPole-v1", "pg", ray_address="auto", out=tmp_path / "study", **SETTINGS)
    assert not (tmp_path / "study").exists()


def test_the_command_compares_on_workers(tmp_path, capsys):
    out = tmp_path / "study"
    small = "--envs 8 --horizon 16 --hidden 8 --critic-hidden 8 --critic-epochs 1 --evaluation-episodes 1 --steps 300"
    command = f"compare CartPole-v1 --rules pg,npg --seeds 1 --workers 2 --out {out} {small}"
    assert cli.main(command.split()) == 0
    assert len(folders(out)) == 2
    assert cli.main(f"resume {out} --workers 2".split()) == 0
    assert "npg" in capsys.readouterr().out
