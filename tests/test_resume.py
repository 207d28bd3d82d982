"""Going on with a run that was stopped: the same metrics and the same policy, bit for bit."""

import json
import os

import numpy as np
import pytest

import surefoot as sf
from runs import TINY, after, policy, rows
from surefoot import checkpoint, cli, config, history
from surefoot.errors import RunError, Stopped
from surefoot.iteration import begin
from surefoot.sources import make_source
from surefoot.standing import Standing, load, save
from surefoot.training import make_rule, resume, train

CASES = {  # environment, rule, settings
    "envpool": ("CartPole-v1", sf.TRPO(), {}),
    "gymnasium": ("CartPole-v1", sf.PPO(epochs=2), {"source": "gymnasium"}),
    "restarts": ("CartPole-v1", sf.NPG(), {"restart_every": 24, "holdout": 0.25}),
    "lambda": ("probes:Noise", sf.KLPenalty(epochs=2), {}),
    "masked": ("probes:Masked", sf.Dual(outer=2), {}),
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.long) if name in ("lambda", "masked") else name for name in CASES]
)
def test_a_run_that_was_stopped_goes_on_as_if_it_had_not(name, tmp_path):
    environment, rule, settings = CASES[name]
    settings = TINY | {"steps": 1000, "progress": False} | settings
    train(environment, rule, out=tmp_path / "whole", **settings)
    with pytest.raises(Stopped, match="stopped after update 3; go on with: surefoot resume"):
        train(environment, rule, out=tmp_path / "parts", stop=after(3), **settings)
    with pytest.raises(Stopped, match="stopped after update 5"):
        resume(tmp_path / "parts", stop=after(2), progress=False, allow_env=True)
    done = resume(tmp_path / "parts", progress=False, allow_env=True)
    assert rows(tmp_path / "parts") == rows(tmp_path / "whole")
    assert policy(tmp_path / "parts") == policy(tmp_path / "whole")
    assert (done.steps, done.updates) == (rows(tmp_path / "whole")[-1]["steps"], len(rows(tmp_path / "whole")))
    told = [json.loads((tmp_path / run / "evaluation.json").read_text()) for run in ("whole", "parts")]
    assert told[0] == told[1]


def test_a_finished_run_goes_on_with_more_steps_as_if_it_had_been_begun_with_them(tmp_path):
    settings = TINY | {"anneal": 1.0, "progress": False}  # what is left of the radius depends on the run's steps
    train("CartPole-v1", out=tmp_path / "whole", steps=900, **settings)
    train("CartPole-v1", out=tmp_path / "parts", steps=400, **settings)
    resume(tmp_path / "parts", steps=900, progress=False)
    assert rows(tmp_path / "parts") == rows(tmp_path / "whole")
    assert policy(tmp_path / "parts") == policy(tmp_path / "whole")
    assert history.read(tmp_path / "parts").config["steps"] == 900


def test_a_run_without_a_checkpoint_begins_again_and_a_torn_line_is_mended(tmp_path):
    train("CartPole-v1", out=tmp_path / "whole", steps=400, progress=False, **TINY)
    before, bits = rows(tmp_path / "whole"), policy(tmp_path / "whole")
    for file in (tmp_path / "whole" / "checkpoints").iterdir():
        file.unlink()
    with open(tmp_path / "whole" / "metrics.jsonl", "a") as metrics:
        metrics.write('{"update": 5, "st')
    told = []
    resume(tmp_path / "whole", progress=False, told=told.append)
    assert rows(tmp_path / "whole") == before
    assert policy(tmp_path / "whole") == bits
    aside = tmp_path / "whole" / "before-1"
    assert told == [f"no checkpoint is sound, so the run begins again from its config.json; what it had is in {aside}"]
    assert (aside / "policy" / "policy.safetensors").read_bytes() == bits
    assert (aside / "metrics.jsonl").read_text().endswith('"st')


def test_a_total_below_what_was_taken_is_refused_and_changes_nothing(tmp_path):
    run = tmp_path / "run"
    train("CartPole-v1", out=run, steps=400, progress=False, **TINY)
    before = (run / "config.json").read_bytes()
    with pytest.raises(sf.SettingError, match=r"steps is a total, and must be at least the \d+ taken so far, but 100"):
        resume(run, steps=100, progress=False)
    assert (run / "config.json").read_bytes() == before


def test_a_run_that_goes_on_has_no_evaluation_of_before(tmp_path):
    run = tmp_path / "run"
    train("CartPole-v1", out=run, steps=400, progress=False, **TINY)
    with pytest.raises(Stopped):
        resume(run, steps=2000, progress=False, stop=after(1))
    assert history.read(run).evaluation is None


def test_a_checkpoint_that_knows_of_more_rows_than_there_are_is_passed_by(tmp_path):
    run = tmp_path / "run"
    train("CartPole-v1", out=run, steps=500, progress=False, checkpoint_seconds=0, **TINY)
    before, bits = rows(run), policy(run)
    metrics = run / "metrics.jsonl"
    metrics.write_bytes(b"".join(metrics.read_bytes().splitlines(keepends=True)[:-2]))
    told = []
    resume(run, progress=False, told=told.append)
    assert "whole lines" in told[0]
    assert told[-1].startswith("going on from")
    assert rows(run) == before
    assert policy(run) == bits


def flip(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(bytes(content))


@pytest.mark.parametrize("harm", [flip, os.unlink, lambda file: os.truncate(file, 100)], ids=["flip", "gone", "torn"])
@pytest.mark.parametrize("part", ["json", "safetensors"])
def test_an_unsound_checkpoint_is_passed_by_and_named(part, harm, tmp_path):
    run = tmp_path / "run"
    settings = TINY | {"checkpoint_seconds": 0, "progress": False}
    train("CartPole-v1", out=run, steps=500, **settings)
    before, bits = rows(run), policy(run)
    newest = sorted((run / "checkpoints").glob("*.json"))[-1]
    harm(newest.with_suffix(f".{part}"))
    told = []
    resume(run, progress=False, told=told.append)
    assert rows(run) == before
    assert policy(run) == bits
    assert len(told) == 2
    assert told[0].startswith("passed by: ")
    assert newest.stem in told[0]
    assert told[1].startswith("going on from ")
    assert "\n" not in "".join(told)


def test_only_the_newest_checkpoints_are_kept(tmp_path):
    sound = []
    for update in range(1, 7):
        sound = checkpoint.write(tmp_path, "a", update, {"a": np.arange(3)}, {}, sound)
    names = sorted(file.name for file in (tmp_path / "checkpoints").iterdir())
    kept = [f"update-{update:08d}.{kind}" for update in (4, 5, 6) for kind in ("json", "safetensors")]
    assert names == kept


def test_a_checkpoint_of_another_run_is_refused_by_the_part_that_does_not_fit(tmp_path):
    def standing(**settings):
        run = config.make_run(**(TINY | settings))
        source = make_source("CartPole-v1", run.collection)
        return source, Standing(*begin(source, make_rule("trpo"), run))

    source, small = standing()
    save(tmp_path, "a", source, small)
    (found,) = checkpoint.found(tmp_path, "a", pytest.fail)
    source, large = standing(hidden=(16,))
    with pytest.raises(RunError, match=r"'learner/policy\.network\.weights\.0' is float32\[4, 8\]"):
        load(found, source, large)
    source, many = standing(envs=9)
    with pytest.raises(RunError, match=r"does not fit|but the run has"):
        load(found, source, many)


def test_an_environment_that_does_not_repeat_is_told_so(tmp_path):
    with pytest.raises(Stopped):
        train("probes:Irreproducible", out=tmp_path / "run", steps=2000, stop=after(2), progress=False, **TINY)
    with pytest.raises(sf.EnvironmentFault, match="does not repeat under its seed"):
        resume(tmp_path / "run", progress=False, allow_env=True)
    assert rows(tmp_path / "run")


@pytest.mark.parametrize(
    ("break_it", "said"),
    [
        (lambda run: (run / "config.json").unlink(), "holds no run that can be gone on with"),
        (lambda run: (run / "config.json").write_text("[]"), "holds no run that can be gone on with"),
        (lambda run: (run / "config.json").write_text('{"environment": "CartPole-v1", "rule": "x"}'), "holds no run"),
        (lambda run: (run / "metrics.jsonl").write_text("{}\n"), "whole lines"),
    ],
)
def test_what_cannot_be_gone_on_with_is_one_line_and_exit_2(break_it, said, tmp_path, capsys):
    run = tmp_path / "run"
    with pytest.raises(Stopped):
        train("CartPole-v1", out=run, steps=5000, stop=after(4), progress=False, **TINY)
    break_it(run)
    assert cli.main(["resume", str(run)]) == 2
    told = capsys.readouterr().err
    assert said in told
    assert told.count("\n") == 1


def test_a_strange_module_is_not_imported_unasked(tmp_path, capsys):
    with pytest.raises(Stopped):
        train("probes:Noise", out=tmp_path / "run", steps=5000, stop=after(1), progress=False, **TINY)
    assert cli.main(["resume", str(tmp_path / "run")]) == 2
    assert "allow" in capsys.readouterr().err
