"""Evaluations while a run learns: when, of which policy, and that learning does not depend on them."""

import json
import re

import numpy as np
import pytest

import functional_probes
import surefoot as sf
from histories import EVALUATIONS, write_run
from runs import TINY, after, evaluations, policy, rows
from surefoot import config, training
from surefoot.errors import RunError, Stopped
from surefoot.iteration import Iteration
from surefoot.lanes import train_together
from surefoot.report.curve import learning_curve
from surefoot.report.page import write_report
from surefoot.standing import Standing, evaluation_due, next_pause
from surefoot.training import resume, train
from surefoot.turns import Plan

EVERY = 300
STEPS = 900
# Not annealed, as a run of fewer steps would have another share of its radius left by then.
SETTINGS = TINY | {"steps": STEPS, "progress": False, "seed": 3, "anneal": 1.0}
WALK = functional_probes.walk()
ENVIRONMENTS = {"host": "CartPole-v1", "compiled": WALK}


@pytest.fixture(scope="module", params=["host", pytest.param("compiled", marks=pytest.mark.long)])
def whole(request, tmp_path_factory):
    """A run with evaluations, and the same one without."""
    folder = tmp_path_factory.mktemp(request.param)
    environment = ENVIRONMENTS[request.param]
    train(environment, out=folder / "with", evaluate_every=EVERY, **SETTINGS)
    train(environment, out=folder / "without", **SETTINGS)
    return environment, folder


def test_there_is_a_line_for_the_first_update_that_reaches_each_multiple(whole):
    _, folder = whole
    steps = {row["update"]: row["steps"] for row in rows(folder / "with")}
    found = evaluations(folder / "with")
    wanted = [update for update, taken in steps.items() if taken // EVERY > steps.get(update - 1, 0) // EVERY]
    assert [row["update"] for row in found] == wanted
    assert [row["steps"] for row in found] == [steps[update] for update in wanted]
    assert len(wanted) >= 2
    for row in found:
        assert row["episodes"] == len(row["returns"]) == TINY["evaluation_episodes"]
        assert row["mean"] == pytest.approx(np.mean(row["returns"]))
        assert row["std"] == pytest.approx(np.std(row["returns"]))
        assert row["cut"] == 0


def test_learning_does_not_depend_on_evaluations(whole):
    _, folder = whole
    assert rows(folder / "with") == rows(folder / "without")
    assert policy(folder / "with") == policy(folder / "without")
    assert not (folder / "without" / "evaluations.jsonl").exists()
    told = [json.loads((folder / run / "evaluation.json").read_text()) for run in ("with", "without")]
    assert told[0] == told[1]


def test_a_line_is_of_the_policy_as_it_was_then(whole, tmp_path):
    environment, folder = whole
    row = evaluations(folder / "with")[0]
    train(environment, out=tmp_path / "run", **SETTINGS | {"steps": row["steps"]})
    told = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert told["return"] == {key: row[key] for key in ("mean", "std", "episodes")}


@pytest.mark.parametrize("stops", [1, 3])
def test_a_run_that_was_stopped_has_the_same_lines(stops, whole, tmp_path):
    environment, folder = whole
    run = tmp_path / "run"
    with pytest.raises(Stopped):
        train(environment, out=run, evaluate_every=EVERY, stop=after(stops), **SETTINGS)
    resume(run, environment=environment, progress=False)
    assert evaluations(run) == evaluations(folder / "with")
    assert rows(run) == rows(folder / "with")


def test_lines_that_no_checkpoint_knows_of_are_made_again(whole, tmp_path):
    """As a kill leaves them, behind the newest checkpoint: whole, and torn."""
    environment, folder = whole
    run = tmp_path / "run"
    with pytest.raises(Stopped):
        train(environment, out=run, evaluate_every=EVERY, stop=after(1), **SETTINGS)
    with open(run / "evaluations.jsonl", "a") as file:
        file.write('{"update": 7, "steps": 3, "mean": 5}\n{"update": 8, "st')
    resume(run, environment=environment, progress=False)
    assert evaluations(run) == evaluations(folder / "with")


def test_a_checkpoint_that_knows_of_lines_that_are_gone_is_passed_by(tmp_path):
    run = tmp_path / "run"
    train("CartPole-v1", out=run, evaluate_every=EVERY, **SETTINGS | {"checkpoint_seconds": 0})
    before = evaluations(run)
    (run / "evaluations.jsonl").write_bytes(b"")
    with pytest.raises(RunError, match=r"evaluations.jsonl has 0 whole lines, but \d were recorded"):
        resume(run, progress=False, told=lambda line: None)
    for file in (run / "checkpoints").iterdir():
        file.unlink()
    resume(run, progress=False, told=lambda line: None)
    assert evaluations(run) == before


def test_a_chunk_that_failed_at_once_is_followed_by_no_evaluation(tmp_path, monkeypatch):
    """The standing is then the one that was evaluated already."""
    onward = training._onward

    def failing(source, rule, run):
        usual, asked = onward(source, rule, run), iter((True, False) * STEPS)
        return lambda standing, started: usual(standing, started) if next(asked) else (standing, [])

    train("CartPole-v1", out=tmp_path / "whole", evaluate_every=EVERY, **SETTINGS)
    monkeypatch.setattr(training, "_onward", failing)
    train("CartPole-v1", out=tmp_path / "run", evaluate_every=EVERY, **SETTINGS)
    assert evaluations(tmp_path / "run") == evaluations(tmp_path / "whole")


@pytest.mark.long
def test_lanes_are_evaluated_as_they_are_alone(tmp_path):
    settings = TINY | {"steps": STEPS, "evaluate_every": EVERY}
    plans = [Plan(tmp_path / f"s{seed}", sf.PG(), config.make_run(seed=seed, **settings)) for seed in range(2)]
    train_together(WALK, plans, progress=False)
    for plan in plans:
        steps = {row["update"]: row["steps"] for row in rows(plan.folder)}
        found = evaluations(plan.folder)
        wanted = [update for update, taken in steps.items() if taken // EVERY > steps.get(update - 1, 0) // EVERY]
        assert [row["update"] for row in found] == wanted
        assert all(row["steps"] == steps[row["update"]] for row in found)
    assert evaluations(plans[0].folder) != evaluations(plans[1].folder)


@pytest.mark.parametrize(
    ("steps", "experience", "every", "due"),
    [
        (299, 100, 300, False),
        (300, 100, 300, True),
        (301, 1, 300, False),
        (399, 100, 300, True),
        (400, 100, 300, False),
        (1000, 1000, 300, True),
        (1000, 100, None, False),
    ],
)
def test_an_evaluation_is_due_after_the_first_update_that_reaches_a_multiple(steps, experience, every, due):
    standing = Standing(None, None, Iteration({"experience": experience}, np.zeros(0), {}), steps, 1)
    assert evaluation_due(standing, every) is due


@pytest.mark.parametrize(
    ("taken", "steps", "every", "pause"),
    [(0, 900, None, 900), (0, 900, 300, 300), (300, 900, 300, 600), (601, 700, 300, 700)],
)
def test_chunks_end_where_an_evaluation_is_due(taken, steps, every, pause):
    assert next_pause(Standing(None, None, steps=taken), steps, every) == pause


def test_the_report_draws_them(tmp_path):
    one, other = write_run(tmp_path / "one", evaluations=EVALUATIONS), write_run(tmp_path / "other")
    alone = write_report([one]).read_text()
    assert "3 deterministic evaluations went from 100 to 300, the best 300." in alone
    data = json.loads(re.search(r'id="learning".*?<script type="application/json">(.*?)</script>', alone, re.S)[1])
    values = data["runs"][0]["lines"][1]["values"]
    assert {place + 1: value for place, value in enumerate(values) if value is not None} == {10: 100, 20: 200, 30: 300}
    assert "evaluation: Return per episode" in write_report([one, other], tmp_path / "both.html").read_text()
    assert "deterministic evaluations" not in write_report([other]).read_text()
    learning_curve(one)


@pytest.mark.parametrize("line", [{"update": "x", "mean": 1}, {"update": 1, "mean": [1]}, []])
def test_lines_that_are_none_are_refused_by_name(line, tmp_path):
    with pytest.raises(RunError, match=r"evaluations\.jsonl"):
        write_report([write_run(tmp_path / "run", evaluations=[line, *EVALUATIONS])])
