"""What the scoreboard makes of its rows, and of rows that are none."""

import json
import os
import sys
from pathlib import Path
from threading import Barrier

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import published
import scoreboard
import scoreboard_page

from surefoot.errors import RunError, SettingError


def row(task="Hopper", seed=0, means=(100.0, 300.0, 200.0, 400.0), final=500.0, peer=None, steps=1000, **other):
    every = steps // (len(means) + 1)
    points = [{"steps": every * (place + 1) + 3, "mean": mean, "std": 1.0} for place, mean in enumerate(means)]
    told = {"evaluations": points, "final": {"mean": final, "std": 1.0, "episodes": 10}, "seconds": 10.0}
    plan = {"peer": peer, "version": "1", "task": task, "seed": seed, "steps": steps}
    settings = {"rule": "trpo", "evaluate_every": every, "evaluation_episodes": 10}
    return plan | {"settings": settings} | told | {"resumed": False, "seconds_in_all": 12.0, "cores": 2} | other


def test_the_seeds_of_a_task():
    told = scoreboard_page.told_of("Hopper", [row(), row(seed=1, means=(0.0, 900.0, 800.0, 0.0), final=300.0)])
    assert told["seeds"] == {0: 500.0, 1: 300.0}
    assert told["final"] == {"mean": 400.0, "std": 100.0}
    assert told["best"] == {"mean": 600.0, "std": 300.0, "steps": 400}
    assert told["worst_over_mean"] == 0.75
    assert told["below_halfway"] == [1]
    assert not told["reached"]


@pytest.mark.parametrize(
    ("task", "worst", "mean", "part"),
    [
        ("Hopper", 60.0, 100.0, 0.6),
        ("Hopper", -5.0, -1.0, None),
        ("Reacher", -6.0, -5.0, (43.29 - 6) / (43.29 - 5)),
        ("Reacher", -60.0, -50.0, None),
    ],
)
def test_the_worst_seed_over_the_mean(task, worst, mean, part):
    assert scoreboard_page.share(task, worst, mean) == pytest.approx(part)


def test_points_that_a_seed_lacks_are_left_out_of_the_curve():
    short = row(seed=1)
    del short["evaluations"][1]
    steps, curves = scoreboard_page.curve([row(), short])
    assert steps.tolist() == [200, 600, 800, 1000]
    assert curves.tolist() == [[100.0, 200.0, 400.0, 500.0]] * 2


def test_normalised_returns_are_0_at_random_and_1_at_the_best_published():
    for task in published.TASKS:
        assert published.normalised(task, published.RANDOM[task]) == 0
        assert published.normalised(task, published.BEST[task]) == 1
        assert published.RANDOM[task] < published.BEST[task]
    assert published.BEST["Reacher"] == -4.1
    assert published.BEST["Swimmer"] == 359


def test_the_newest_settings_are_told_of_and_the_peers_beside_them():
    old = row(final=9.0, settings=row()["settings"] | {"rule": "ppo"})
    peer = row(peer="sb3-trpo", final=50.0, steps=100, seconds=20.0)
    told = scoreboard_page.tell([old, row(), row(steps=100, final=70.0, seconds=2.0), peer])
    assert told["tasks"]["Hopper"]["seeds"] == {0: 500.0}
    (beside,) = told["peers"]
    assert (beside["return"], beside["our_return"]) == (50.0, 70.0)
    assert beside["our_share_of_time"] == pytest.approx(10.0 / (20.0 * 1000 / 100))
    assert told["below_halfway"] == []
    np.testing.assert_allclose(told["interquartile_mean"]["final"], published.normalised("Hopper", 500.0))


def test_the_page_keeps_what_is_written_by_hand(tmp_path, monkeypatch):
    rows = [row(task, seed) for task in published.TASKS for seed in range(2)]
    page = scoreboard_page.write_page(rows, tmp_path / "scoreboard.jsonl")
    assert (tmp_path / "images" / "scoreboard.png").stat().st_size > 1000
    first = page.read_text()
    page.write_text(first + "Radii.\n")
    monkeypatch.setattr(scoreboard_page, "picture", lambda *_: b"")  # it takes a second
    scoreboard_page.write_page(rows, tmp_path / "scoreboard.jsonl")
    assert page.read_text() == first + "Radii.\n"
    assert all(source in first for source in {published_row.source for published_row in published.ROWS})
    assert "None of the 18 runs ends below its halfway point." in first


def test_a_run_with_a_row_is_not_made_again(tmp_path, monkeypatch):
    made = []

    def measured(plan, runs):
        made.append(plan)
        return row() | plan._asdict()

    monkeypatch.setattr(scoreboard, "in_a_process", measured)
    plans = [scoreboard.ours("Hopper", seed, 1000, 100, "trpo", {"radius": 0.05}) for seed in range(2)]
    out = tmp_path / "docs" / "scoreboard.jsonl"
    for wanted in (plans[:1], plans, plans):
        assert scoreboard.run_all(wanted, out, tmp_path / "runs", 1, lambda line: None) == 0
    assert made == plans
    assert [scoreboard.plan_of(told) for told in scoreboard.read_rows(out)] == plans
    assert plans[0].settings["rule_settings"]["radius"] == 0.05
    other = scoreboard.ours("Hopper", 0, 1000, 100, "trpo", {})
    assert other.folder(tmp_path) != plans[0].folder(tmp_path)


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="cores cannot be dealt out here")
def test_runs_at_once_have_cores_of_their_own(tmp_path, monkeypatch):
    cores, both, seen = os.sched_getaffinity(0), Barrier(2, timeout=30), []

    def measured(plan, runs):
        both.wait()
        seen.append(os.sched_getaffinity(0))
        return row() | plan._asdict()

    monkeypatch.setattr(scoreboard, "in_a_process", measured)
    plans = [scoreboard.ours("Hopper", seed, 1000, 100, "trpo", {}) for seed in range(4)]
    assert scoreboard.run_all(plans, tmp_path / "scoreboard.jsonl", tmp_path / "runs", 2, lambda line: None) == 0
    assert os.sched_getaffinity(0) == cores
    one, other = {frozenset(each) for each in seen} if len(cores) > 1 else (cores, cores)
    assert one | other == cores
    assert len(cores) == 1 or not one & other


@pytest.mark.parametrize(
    ("name", "said"),
    [("radios", "did you mean 'radius'"), ("steps", "set cannot change steps"), ("discount", "discount")],
)
def test_settings_that_are_none_are_refused(name, said):
    with pytest.raises(SettingError, match=said):
        scoreboard.ours("Hopper", 0, 1000, 100, "trpo", {name: 2})


@pytest.mark.parametrize("line", ["{", "[]", "{}", json.dumps({"peer": None})])
def test_lines_that_are_no_rows_are_named(line, tmp_path):
    file = tmp_path / "scoreboard.jsonl"
    file.write_text(json.dumps(row()) + "\n" + line + "\n")
    with pytest.raises(RunError, match=r"line 2, is no row"):
        scoreboard.read_rows(file)


def test_settings_are_read_from_the_command_line():
    assert scoreboard.settings_given(["rule.radius=0.02", "hidden=[8]", "critic-step-size=1e-3", "solver=cg"]) == {
        "radius": 0.02,
        "hidden": [8],
        "critic_step_size": 1e-3,
        "solver": "cg",
    }
    with pytest.raises(SettingError, match="NAME=VALUE"):
        scoreboard.settings_given(["radius"])
