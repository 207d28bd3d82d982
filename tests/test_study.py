"""Studies: what is run, what each setting comes to, and that nothing is lost when runs fail or are stopped."""

import contextlib
import dataclasses
import io
import json
import math
import re
import shutil
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import surefoot as sf
from histories import CONFIG, healthy_row
from runs import TINY, policy, rows
from surefoot import cli, config, course, history, turns
from surefoot.cli.studies import reported, swept, table
from surefoot.errors import EnvironmentFault, RunError, SettingError, Stopped
from surefoot.report.curves import MOST_SETTINGS
from surefoot.report.study import drawn, study_picture
from surefoot.scores import score
from surefoot.settings import as_json, digest, dumps
from surefoot.study_record import FILE, Member, StudyRecord, as_told, read_study, rows_of
from surefoot.sweep import MOST_RUNS, make_sweep
from surefoot.turns import Outcome, Plan

OPTIONS = ["--envs", "8", "--horizon", "16", "--hidden", "8", "--critic-hidden", "8", "--critic-epochs", "1"]
OPTIONS += ["--evaluation-episodes", "2"]
SMALL = TINY | {"steps": 400, "progress": False}
SWEEP = {"radius": [0.003, 0.01], "discount": [0.9, 0.99]}


# What is run.


@pytest.mark.parametrize(
    ("told", "seeds", "folders"),
    [
        ({}, 2, ["runs/s3", "runs/s4"]),
        ({"radius": [0.003, 1e-5]}, 1, ["runs/radius0.003-s3", "runs/radius1e-05-s3"]),
        ({"rule.damping": [0, 0.1]}, 1, ["runs/damping0-s3", "runs/damping0.1-s3"]),
        ({"critic-step-size": [1.0]}, 1, ["runs/critic_step_size1-s3"]),
        (
            {"envs": [4, 8.0], "--log-std": [-0.5]},
            2,
            [f"runs/envs{envs}_log_std-0.5-s{seed}" for envs in (4, 8) for seed in (3, 4)],
        ),
        ({"restart_every": [None, 100]}, 1, ["runs/restart_everynone-s3", "runs/restart_every100-s3"]),
    ],
)
def test_every_setting_is_run_with_every_seed_in_a_folder_of_its_own(told, seeds, folders):
    sweep = make_sweep(config.TRPO(), {"seed": 3}, seeds, told)
    assert [point.folder(seed) for point in sweep.points for seed in sweep.every_seed] == folders


def test_the_settings_of_a_point_are_those_of_rule_and_run():
    sweep = make_sweep(config.TRPO(accept=0.2), {"envs": 4}, 1, SWEEP)
    told = [(sweep.rule(point), sweep.run(point, 7)) for point in sweep.points]
    assert [(rule.radius, run.estimator.discount) for rule, run in told] == [
        (0.003, 0.9),
        (0.003, 0.99),
        (0.01, 0.9),
        (0.01, 0.99),
    ]
    assert {(rule.accept, run.collection.envs, run.seed) for rule, run in told} == {(0.2, 4, 7)}


def test_what_follows_from_a_setting_follows_from_a_swept_one():
    sweep = make_sweep(config.TRPO(), {}, 1, {"damping": [0, 0.1]})
    assert [sweep.rule(point).subsample for point in sweep.points] == [1, 0.2]


@pytest.mark.parametrize("rule", [sf.TRPO, sf.NPG])
@pytest.mark.parametrize(
    ("given", "swept", "subsamples"),
    [
        ({}, {"damping": [0.0, 0.1]}, [1.0, 0.2]),
        ({"damping": 0.0}, {"radius": [0.1]}, [1.0]),
        ({"damping": 0.3}, {"damping": [0.0]}, [1.0]),
        ({"subsample": None}, {"damping": [0.0, 0.1]}, [1.0, 0.2]),
        ({"subsample": 0.2}, {"damping": [0.1, 0.3]}, [0.2, 0.2]),
        ({"subsample": 0.2}, {"damping": [0.0, 0.1]}, None),
        ({"subsample": 1.0}, {"damping": [0.0, 0.1]}, [1.0, 1.0]),
        ({"subsample": 1.0, "damping": 0.0}, {"damping": [0.0, 0.1]}, [1.0, 1.0]),
        ({"subsample": 0.5}, {"radius": [0.1, 0.2]}, [0.5, 0.5]),
        ({}, {"subsample": [0.2, 0.5]}, [0.2, 0.5]),
    ],
)
def test_what_was_given_stays_also_where_it_would_follow_by_itself(rule, given, swept, subsamples, tmp_path):
    plain = rule.settings_class(**given)
    # Through the rule, as in Python; by its name and plain values, as from the command line; and study.json.
    for told in (plain, rule(**given).settings(), rule(**dataclasses.asdict(plain)).settings()):
        sweep = make_sweep(told, {}, 1, swept)
        recorded = json.loads(json.dumps(sweep.rule_settings))
        again = make_sweep(rule.settings_class(**recorded), {}, 1, swept)
        for made in (sweep, again):
            settings = [made.rule(point) for point in made.points]
            if subsamples is None:
                with pytest.raises(SettingError, match=r"damping must be above 0 with subsample 0\.2, but 0 came"):
                    rule(**dataclasses.asdict(settings[0]))
            else:
                assert [setting.subsample for setting in settings] == subsamples
                assert [rule(**dataclasses.asdict(setting)).subsample for setting in settings] == subsamples


def test_a_number_that_follows_is_recorded_and_compiled_for_as_any_other():
    one, other = sf.TRPO(), sf.TRPO(subsample=0.2)
    assert as_json(one.settings()) == as_json(other.settings())
    assert dumps(one.settings()) == dumps(other.settings())
    assert digest(one.settings()) == digest(other.settings())
    assert jax.tree.structure(one) == jax.tree.structure(other)
    assert hash(jax.tree.structure(one)) == hash(jax.tree.structure(other))


@pytest.mark.parametrize(
    ("line", "dampings", "subsamples"),
    [
        ("--rule.damping 0", [0.0], [1.0]),
        ("--sweep damping=0,0.1", [0.0, 0.1], [1.0, 0.2]),
        ("--sweep damping=0.1,0.2 --rule.subsample 0.2", [0.1, 0.2], [0.2, 0.2]),
    ],
)
def test_a_runs_config_gives_no_setting_that_would_follow(line, dampings, subsamples, whole, monkeypatch):
    made = []
    monkeypatch.setattr("surefoot.cli.train.make_sweep", lambda *given: made.append(make_sweep(*given)) or never())
    with pytest.raises(AssertionError):
        cli.main(["train", "--config", str(whole.path / FOLDERS[0] / "config.json"), *line.split()])
    rules = [made[0].rule(point) for point in made[0].points]
    assert [(rule.damping, rule.subsample) for rule in rules] == list(zip(dampings, subsamples, strict=True))


def test_names_too_long_for_a_file_are_numbers():
    many = {name: [0.123456789] for name in ("radius", "damping", "tolerance", "shrink", "accept")}
    more = {name: [0.123456789] for name in ("discount", "gae_lambda", "holdout", "confidence", "critic_step_size")}
    sweep = make_sweep(config.TRPO(), {}, 2, many | more)
    assert [point.folder(0) for point in sweep.points] == ["runs/setting1-s0"]


def test_plans_go_together_where_they_differ_in_numbers_that_a_program_takes():
    def plan(rule=sf.TRPO, seed=0, guard=False, settings=None, **own):
        return Plan(None, rule(**own), config.make_run(seed=seed, guard=guard, **(settings or {})))

    plans = [
        plan(),
        plan(radius=0.02, damping=0.3, accept=0.3, seed=1),
        plan(iterations=5),
        plan(settings={"discount": 0.9, "gae_lambda": 0.5, "critic_step_size": 0.1}),
        plan(settings={"envs": 8}),
        plan(subsample=0.5),
        plan(settings={"envs": 8}, seed=4),
        plan(rule=sf.PPO),
        plan(rule=sf.PPO, stop=0.1),
        plan(rule=sf.PPO, stop=0.2),
        plan(guard=True),
        plan(guard=True, seed=1),
    ]
    assert course.groups(plans, together=True) == [[0, 1, 3], [2], [4, 6], [5], [7], [8, 9], [10], [11]]
    assert course.groups(plans, together=False) == [[place] for place in range(len(plans))]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("--seeds 0", "seeds must be a whole number, at least 1, but 0 came"),
        ("--seeds 2 --seed 4294967295", "go beyond 4294967295, the largest seed"),
        ("--seeds 5000", f"make 5000 runs, but a study has at most {MOST_RUNS}"),
        ("--seeds two", "a whole number is wanted"),
        ("--lanes 2", "--lanes is for a study, and this is a single run"),
        ("--lanes 0 --seeds 2", "lanes must be a whole number, at least 1"),
        ("--sweep radius", "as in radius=0.003,0.01, but 'radius' came"),
        ("--sweep radius=", "as in radius=0.003,0.01"),
        ("--sweep radius=0.1,x", "--sweep radius: a number is wanted, but 'x' came"),
        ("--sweep radius=0.1,,0.2", "a number is wanted, but '' came"),
        ("--sweep raduis=0.1,0.2", "unknown setting 'raduis' (did you mean 'radius'"),
        ("--sweep radius=0.1,-1", "radius must be a number, above 0, but -1 came"),
        ("--sweep radius=0.1,nan", "radius must be a number, above 0, but nan came"),
        ("--sweep radius=0.1,0.1", "radius has the value 0.1 twice"),
        ("--sweep damping=0,0", "damping has the value 0 twice"),
        ("--sweep envs=4,4.5", "envs must be a whole number"),
        ("--sweep seed=1,2", "seed is not swept; seeds (--seeds N)"),
        ("--sweep solver=1,2", "solver is no numeric setting"),
        ("--sweep guard=0,1", "guard is no numeric setting"),
        ("--sweep clip=0.1,0.2", "clip is no setting of the rule trpo, but of ppo"),
        ("--sweep radius=0.1 --sweep radius=0.2", "--sweep names radius twice"),
        ("--sweep radius=0.1,0.2 --radius 0.3", "radius is given a value and swept as well"),
        ("--sweep gae-lambda=0.1,0.2 --gae-lambda 0.3", "gae_lambda is given a value and swept as well"),
        ("--sweep rule.subsample=0.1,0.5 --rule.damping 0", "damping must be above 0"),
        ("--sweep envs=4,16 --guard", "guard needs at least 8 environments"),
        ("--sweep envs=65536 --sweep horizon=1,10000000", "envs times horizon must be at most"),
        ("--seeds 2 --tensorboard", "--tensorboard is for one run"),
        ("--seeds 2 --source envpool --rule.solver tabular", "tabular"),
    ],
)
def test_what_cannot_be_studied_is_one_line_before_anything_is_written(line, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", "CartPole-v1", *line.split()]) == 2
    told = capsys.readouterr()
    assert said in told.err
    assert (told.out, len(told.err.splitlines())) == ("", 1)
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_environment_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(sf.EnvironmentNotFound, match="'CartPole-v1'"):
        sf.study("CartPol-v1", seeds=2, out=tmp_path / "study")
    assert list(tmp_path.iterdir()) == []


# What a setting comes to.


@pytest.mark.parametrize(
    ("returns", "statistic", "value"),
    [
        ((), "mean", None),
        ((3.0,), "mean", 3.0),
        ((3.0, 5.0), "mean", 4.0),
        ((0.0, 3.0, 9.0), "interquartile mean", 4.0),
        ((100.0, 2.0, 4.0, -100.0), "interquartile mean", 3.0),
        ((9.0, 1.0, 0.0, 6.0, 2.0, 3.0, -9.0), "interquartile mean", 2.4),
        ((1000.0, 900.0, 1.0, 2.0, 3.0, 6.0, -900.0, -1000.0), "interquartile mean", 3.0),
    ],
)
def test_a_score_is_the_mean_of_the_middle_half(returns, statistic, value):
    told = score(returns)
    assert (told.statistic, told.value) == (statistic, value)
    assert (told.lower is None) == (told.upper is None) == (len(returns) < 3)


@settings(max_examples=20)
@given(st.lists(st.floats(-1e3, 1e3), min_size=3, max_size=12))
def test_an_interval_holds_its_score_and_lies_within_the_seeds(returns):
    told = score(tuple(returns))
    rounding = 1e-9 * max(map(abs, returns))
    assert min(returns) - rounding <= told.lower <= told.value + rounding
    assert told.value - rounding <= told.upper <= max(returns) + rounding


@pytest.mark.long
def test_an_interval_covers_the_truth_about_as_often_as_it_says(rng):
    # The percentile bootstrap of 16 normal seeds is known to fall short of 95% by a few per cent.
    found = [score(tuple(rng.normal(size=16))) for _ in range(200)]
    covered = np.mean([told.lower <= 0 <= told.upper for told in found])
    assert 0.85 <= covered <= 0.99


def members(returns, **values):
    return [Member(f"runs/s{seed}", values, seed, "finished", None, value, 10) for seed, value in enumerate(returns)]


def test_runs_that_failed_count_as_failed_and_not_as_returns():
    lost = [Member("runs/s8", {"radius": 0.1}, 8, "failed", "it broke"), Member("runs/s9", {"radius": 0.1}, 9)]
    (row,) = rows_of([*members([1.0, 2.0], radius=0.1), *lost])
    assert (row.finished, row.failed, row.unfinished, row.value, row.lower) == (2, 1, 1, 1.5, None)


# A study as a user makes it.


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp("study") / "whole"
    line = ["--seeds", "2", "--seed", "5", "--sweep", "radius=0.003,0.03", "--steps", "400", "--out", str(out)]
    told = io.StringIO()
    with contextlib.redirect_stdout(told):
        assert cli.main(["train", "CartPole-v1", *OPTIONS, *line]) == 0
    return SimpleNamespace(path=out, told=told.getvalue(), study=read_study(out))


FOLDERS = [f"runs/radius{radius}-s{seed}" for radius in ("0.003", "0.03") for seed in (5, 6)]


def test_a_study_is_a_folder_of_full_runs(whole):
    assert {path.name for path in whole.path.iterdir()} == {"runs", "study.html", "study.json", "study.png"}
    assert [f"runs/{path.name}" for path in sorted((whole.path / "runs").iterdir())] == FOLDERS
    told = json.loads((whole.path / FILE).read_text())
    assert (told["environment"], told["rule"]) == ("CartPole-v1", "trpo")
    assert (told["seeds"], told["sweep"]) == ([5, 6], {"radius": [0.003, 0.03]})
    assert set(told["versions"]) >= {"surefoot", "python", "jax"}
    for run in told["runs"]:
        recorded = history.read(whole.path / run["folder"])
        assert recorded.evaluation["return"]["mean"] == run["return"]
        assert recorded.rows[-1]["steps"] == run["steps"] >= 400
        assert recorded.config["rule_settings"]["radius"] == run["setting"]["radius"]
        assert (recorded.config["seed"], run["status"], run["error"]) == (run["seed"], "finished", None)
        assert sf.load(whole.path / run["folder"]).environment == "CartPole-v1"
    for row in told["rows"]:
        returns = [run["return"] for run in told["runs"] if run["setting"] == row["setting"]]
        assert (row["finished"], row["statistic"], row["return"]) == (2, "mean", np.mean(returns))
        assert row["lower"] is row["upper"] is row["confidence"] is None
        assert row["note"] == "fewer than 3 finished seeds have no interval"


def test_a_run_of_a_study_is_that_run_alone(whole, tmp_path):
    alone = sf.train("CartPole-v1", sf.TRPO(radius=0.03), seed=6, out=tmp_path / "alone", **SMALL)
    assert rows(alone.path) == rows(whole.path / FOLDERS[-1])
    assert policy(alone.path) == policy(whole.path / FOLDERS[-1])


def test_the_table_has_a_line_for_each_setting(whole):
    head, first, second, note, *rest = whole.told.splitlines()
    columns = [
        "setting",
        "mean",
        "95% interval",
        "mean ± std",
        "seeds",
        "seconds",
        "steps/s",
        "KL",
        "largest",
        "refused",
    ]
    assert re.split(r"  +", head) == columns
    for line, row in zip((first, second), whole.study.rows, strict=True):
        assert line.startswith(f"radius {row.values['radius']}")
        assert f"{row.value:.6g}" in line
    assert note.startswith("fewer than 3 finished seeds have no interval")
    assert any("study.png" in line for line in rest)


def test_json_is_one_object_with_the_whole(whole, capfd):
    assert cli.main(["resume", str(whole.path), "--json"]) == 0
    told = json.loads(capfd.readouterr().out)
    assert told["study"] == str(whole.path)
    recorded = json.loads((whole.path / FILE).read_text())
    assert all(told[key] == recorded[key] for key in ("runs", "rows", "seeds", "sweep", "environment", "rule"))


def test_a_folder_that_holds_a_study_is_refused_and_left_alone(whole, capsys):
    before = {path: path.read_bytes() for path in whole.path.rglob("*") if path.is_file()}
    assert cli.main(["train", "CartPole-v1", *OPTIONS, "--seeds", "2", "--out", str(whole.path)]) == 2
    assert "already holds" in capsys.readouterr().err
    assert before == {path: path.read_bytes() for path in whole.path.rglob("*") if path.is_file()}


def test_report_and_doctor_read_a_study(whole, tmp_path, capsys):
    page = tmp_path / "page.html"
    assert cli.main(["report", str(whole.path), "--out", str(page)]) == 0
    assert all(folder.removeprefix("runs/") in page.read_text() for folder in FOLDERS)
    capsys.readouterr()
    code = cli.main(["doctor", str(whole.path), "--json"])
    told = json.loads(capsys.readouterr().out)
    assert code == (0 if told["healthy"] else 1)
    assert [run["run"] for run in told["runs"]] == [str(whole.path / folder) for folder in FOLDERS]
    assert all(run["healthy"] is (not run["findings"]) for run in told["runs"])
    cli.main(["doctor", str(whole.path)])
    assert capsys.readouterr().out.count("runs/radius") == len(FOLDERS)


def test_one_value_and_one_seed_are_a_run(monkeypatch, tmp_path, capsys):
    made = []
    monkeypatch.setattr("surefoot.training.train", lambda *given, **settings: made.append((given, settings)))
    monkeypatch.setattr("surefoot.cli.train.tell", lambda done, quiet: {})
    line = ["--sweep", "radius=0.5", "--sweep", "discount=0.5", "--seed", "3", "--out", str(tmp_path / "run")]
    assert cli.main(["train", "CartPole-v1", *line]) == 0
    (((environment, rule), settings),) = made
    assert (environment, float(rule.radius)) == ("CartPole-v1", 0.5)
    assert (settings["discount"], settings["seed"], settings["out"]) == (0.5, 3, str(tmp_path / "run"))


# What goes wrong, and going on.


def stops_at(call):
    asked = iter(range(1, 1000))
    return lambda: next(asked) >= call


def test_a_study_that_was_stopped_goes_on_as_if_it_had_not(whole, tmp_path):
    out = tmp_path / "parts"
    first, second = FOLDERS[0], FOLDERS[2]
    given = {"seed": 5, "sweep": {"radius": [0.003, 0.03]}, "out": out, **SMALL}
    # A run of four updates asks five times: before it, and after each.
    with pytest.raises(Stopped, match=f"stopped with 0 of 2 runs finished; go on with: surefoot resume {out}"):
        sf.study("CartPole-v1", sf.TRPO(), stop=stops_at(3), **given)
    told = read_study(out)
    assert [(member.status, member.error) for member in told.members] == [("unfinished", None)] * 2
    assert (out / first / "checkpoints").is_dir()
    assert not (out / second).exists()
    # What is left of the first run asks three times.
    with pytest.raises(Stopped, match="stopped with 1 of 2 runs finished"):
        sf.resume_study(out, progress=False, stop=stops_at(5))
    before = (out / first / "report.html").stat().st_mtime_ns
    done = sf.resume_study(out, progress=False)
    assert (out / first / "report.html").stat().st_mtime_ns == before
    for folder in (first, second):
        assert rows(out / folder) == rows(whole.path / folder)
        assert policy(out / folder) == policy(whole.path / folder)
    expected = [member for member in whole.study.members if member.folder in (first, second)]
    assert list(map(without_time, done.runs)) == list(map(without_time, expected))


def without_time(member):
    return member._replace(account=member.account._replace(seconds=None, steps_per_second=None))


def never(*_, **__):
    raise AssertionError("a finished run is made again")


def test_a_kill_after_a_run_and_before_it_is_told_of_loses_nothing(whole, tmp_path, monkeypatch):
    out = tmp_path / "study"
    shutil.copytree(whole.path, out)
    told = json.loads((out / FILE).read_text())
    for run in told["runs"]:
        run |= {"status": "unfinished", "return": None, "steps": None}
    (out / FILE).write_text(json.dumps(told))
    for name in ("train", "resume"):
        monkeypatch.setattr(turns, name, never)
    done = sf.resume_study(out, progress=False)
    assert (done.runs, done.rows) == (whole.study.members, whole.study.rows)
    assert read_study(out).members == whole.study.members


def failing(seed, kind=EnvironmentFault):
    """`train`, but that runs of this seed fail after they left a folder."""

    def train(environment, rule, *, out, told, stop, progress, **settings):
        out.mkdir(parents=True)
        if settings["seed"] == seed:
            raise kind("environment 3 raised\nin two lines")
        return SimpleNamespace(evaluation={"return": {"mean": float(settings["seed"])}}, steps=10)

    return train


def test_a_run_that_fails_is_told_of_and_stops_no_other(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(turns, "train", failing(1))
    monkeypatch.setattr("surefoot.training.make_source", never)
    out = tmp_path / "study"
    assert cli.main(["train", "CartPole-v1", *OPTIONS, "--seeds", "4", "--out", str(out)]) == 2
    told = capfd.readouterr().out
    assert "3, 1 failed" in told
    assert "failed: runs/s1: environment 3 raised in two lines" in told
    record = read_study(out)
    assert [member.status for member in record.members] == ["finished", "failed", "finished", "finished"]
    (row,) = record.rows
    assert (row.finished, row.failed, row.value) == (3, 1, np.mean([0, 2, 3]))
    assert row.lower is not None


def test_an_evaluation_that_is_no_number_is_a_failed_run(tmp_path, monkeypatch):
    def train(*_, out, **__):
        return SimpleNamespace(evaluation={"return": {"mean": math.nan}}, steps=10)

    monkeypatch.setattr(turns, "train", train)
    done = sf.study("CartPole-v1", seeds=1, out=tmp_path / "study", progress=False, **TINY)
    assert (done.runs[0].status, done.runs[0].error) == ("failed", "its final evaluation came to a return of nan")
    assert done.rows[0].value is None


def test_study_json_is_whole_after_every_run(tmp_path, monkeypatch):
    out, seen = tmp_path / "study", []
    made = failing(99)

    def train(*given, **settings):
        seen.append([run["status"] for run in json.loads((out / FILE).read_text())["runs"]])
        return made(*given, **settings)

    monkeypatch.setattr(turns, "train", train)
    sf.study("CartPole-v1", seeds=3, out=out, progress=False, **TINY)
    assert seen == [["finished"] * done + ["unfinished"] * (3 - done) for done in range(3)]


def test_functional_environments_are_given_to_the_trainer_in_groups(tmp_path, monkeypatch):
    calls = []

    def together(environment, plans, *, finished, lanes, progress, stop, told):
        calls.append((environment, [plan.folder.name for plan in plans], lanes))
        return [Outcome(None, "it broke")] * len(plans)

    monkeypatch.setattr(course, "train_together", together)
    sweep = {"radius": [0.1, 0.2], "horizon": [4, 8]}
    done = sf.study("functional_probes:walk", sweep=sweep, out=tmp_path / "s", lanes=3, progress=False, envs=4)
    assert calls == [
        ("functional_probes:walk", ["radius0.1_horizon4-s0", "radius0.2_horizon4-s0"], 3),
        ("functional_probes:walk", ["radius0.1_horizon8-s0", "radius0.2_horizon8-s0"], 3),
    ]
    assert {run.error for run in done.runs} == {"it broke"}


def change(**parts):
    return lambda told: told | parts


def run_with(**parts):
    return lambda told: told | {"runs": [told["runs"][0] | parts, *told["runs"][1:]]}


BROKEN = {  # what study.json holds instead, the commands that read that part, and what they say
    "a list": (lambda told: [], "report doctor resume", "must be a JSON object"),
    "no runs": (change(runs=None), "report doctor resume", "runs must be a JSON array"),
    "a run that is none": (change(runs=[3]), "report doctor resume", "a run must be a JSON object"),
    "a folder outside": (run_with(folder="runs/../../x"), "report doctor resume", "folder must be runs/"),
    "a folder at the root": (run_with(folder="/etc"), "report doctor resume", "folder must be runs/"),
    "a hidden folder": (run_with(folder="runs/.."), "report doctor resume", "folder must be runs/"),
    "one folder twice": (run_with(folder=FOLDERS[1]), "report doctor resume", "two runs have the same folder"),
    "no such status": (run_with(status="well"), "report doctor resume", "status must be"),
    "a return that is none": (run_with(**{"return": "nan"}), "report doctor resume", "return of a finished run"),
    "a return beyond all": (run_with(**{"return": 10**290}), "report doctor resume", "return of a finished run"),
    "a setting of words": (run_with(setting={"radius": "x"}), "report doctor resume", "setting must hold numbers"),
    "a seed of words": (run_with(seed="x"), "report doctor resume", "seed must be a whole number"),
    "no environment": (change(environment=None), "resume", "environment must be a name"),
    "no such rule": (change(rule="x"), "resume", "rule must be one of"),
    "a rule for tables": (change(rule="pi", rule_settings={}), "resume", "is for finite MDPs"),
    "seeds with a gap": (change(seeds=[1, 3]), "resume", "seeds must follow one another"),
    "no seeds": (change(seeds=[]), "resume", "seeds must be whole numbers"),
    "seeds of words": (change(seeds=["a"]), "resume", "seeds must be whole numbers"),
    "another sweep": (change(sweep={"raduis": [1]}), "resume", "unknown setting 'raduis'"),
    "a setting that is none": (change(settings={"stpes": 1}), "resume", "unknown setting 'stpes'"),
    "no settings": (change(settings=None), "resume", "settings and sweep must be JSON objects"),
    "a stranger's module": (change(environment="somewhere:make"), "resume", "--allow-env"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_anyone_may_have_written_is_refused_in_one_line(name, whole, tmp_path, capsys):
    broken, commands, said = BROKEN[name]
    told = json.loads((whole.path / FILE).read_text())
    (tmp_path / FILE).write_text(json.dumps(broken(told)))
    before = (tmp_path / FILE).read_bytes()
    for command in commands.split():
        assert cli.main([command, str(tmp_path)]) == 2
        printed = capsys.readouterr()
        assert said in printed.err
        assert (printed.out, len(printed.err.splitlines())) == ("", 1)
    assert [path.name for path in tmp_path.iterdir()] == [FILE]
    assert (tmp_path / FILE).read_bytes() == before


def test_a_link_in_the_place_of_a_run_is_not_written_through(whole, tmp_path):
    out, elsewhere = tmp_path / "study", tmp_path / "elsewhere"
    (out / "runs").mkdir(parents=True)
    elsewhere.mkdir()
    shutil.copy(whole.path / FILE, out / FILE)
    (out / FOLDERS[0]).symlink_to(elsewhere)
    with pytest.raises(RunError, match="is a link; put what it leads to in its place"):
        sf.resume_study(out, progress=False)
    assert list(elsewhere.iterdir()) == []


@pytest.mark.parametrize("option", ["--steps 800", "--tensorboard"])
def test_what_is_for_one_run_is_refused_for_a_study(option, whole, capsys):
    assert cli.main(["resume", str(whole.path), *option.split()]) == 2
    assert "is for one run, and this is a study" in capsys.readouterr().err


def test_lanes_are_for_a_study_alone(whole, capsys, monkeypatch):
    assert cli.main(["resume", str(whole.path / FOLDERS[0]), "--lanes", "2"]) == 2
    assert "--lanes is for a study, and this is a single run" in capsys.readouterr().err
    assert cli.main(["resume", str(whole.path), "--lanes", "0"]) == 2
    assert "lanes must be a whole number, at least 1" in capsys.readouterr().err
    given = []
    monkeypatch.setattr("surefoot.studies.resume_study", lambda *_, lanes, **__: given.append(lanes) or whole.study)
    for line in ([], ["--lanes", "3"]):
        assert cli.main(["resume", str(whole.path), *line]) == 0
    assert given == [None, 3]


# The picture, the table and the page of studies of any size.


def fake_study(folder, settings=1, seeds=1, updates=5, lost=()):
    """A study of runs that were never run; those at the places `lost` have no folder."""
    made = []
    for place in range(settings):
        values = {"radius": (place + 1) / 8} if settings > 1 else {}
        for seed in range(seeds):
            member = Member(f"runs/p{place}-s{seed}", values, seed, "finished", None, 100.0 * place + seed, updates)
            made.append(member)
            if len(made) - 1 in lost:
                continue
            run = folder / member.folder
            run.mkdir(parents=True)
            (run / "config.json").write_text(json.dumps(CONFIG | {"seed": seed}))
            lines = [json.dumps(healthy_row(update, updates)) + "\n" for update in range(1, updates + 1)]
            (run / "metrics.jsonl").write_text("".join(lines))
    folder.mkdir(exist_ok=True)
    told = {"environment": "E$_x", "rule": "trpo", **as_told(made)}
    (folder / FILE).write_text(json.dumps(told))
    return folder


@pytest.mark.parametrize(
    "study",
    [
        {},
        {"seeds": 3},
        {"settings": 3, "seeds": 4, "lost": (0, 5)},
        {"settings": MOST_SETTINGS + 1, "updates": 2},
        {"updates": 1, "seeds": 2},
        {"seeds": 2, "lost": (0, 1)},
        {"updates": 0},
    ],
    ids=str,
)
def test_any_study_can_be_drawn(study, tmp_path):
    picture = study_picture(fake_study(tmp_path / "study", **study))
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_study_without_a_finished_run_can_be_drawn_and_told(tmp_path):
    lost = [Member("runs/s0", {}, 0), Member("runs/s1", {}, 1, "failed", "why")]
    record = StudyRecord(tmp_path, "E", "trpo", lost)
    assert drawn(record, "it").startswith(b"\x89PNG")
    dash = "\N{EN DASH}"
    assert table(record)[1].split() == [
        "as",
        "given",
        *[dash] * 3,
        *["0,", "1", "failed,", "1", "unfinished"],
        *[dash] * 5,
    ]


def test_a_report_shows_all_runs_of_a_small_study_and_typical_ones_of_a_large_one(tmp_path):
    small = fake_study(tmp_path / "small", settings=3, seeds=4)
    assert len(reported(str(small))) == 12
    large = fake_study(tmp_path / "large", settings=3, seeds=5)
    # Returns are 0 to 4 above the setting's least, and the interquartile mean of five is the middle one's.
    assert [path.rpartition("/")[2] for path in reported(str(large))] == ["p0-s2", "p1-s2", "p2-s2"]
    many = fake_study(tmp_path / "many", settings=14)
    assert [path.rpartition("/")[2] for path in reported(str(many))] == [f"p{place}-s0" for place in range(2, 14)]


def test_values_are_read_as_they_are_typed():
    assert swept(["--rule.step-size=1e-3,2", "restart-every=none,5"]) == {
        "step_size": [0.001, 2],
        "restart_every": [None, 5],
    }
    with pytest.raises(SettingError, match="--sweep must be a setting and its values"):
        swept(["=1"])
