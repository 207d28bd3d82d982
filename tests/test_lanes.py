"""Many runs in one program: each lane is the run that it would be alone, and one that fails harms no other."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

import functional_probes
import surefoot as sf
from surefoot import config, history, lanes
from surefoot.compiled import fetched, iterations, make_chunk, numbers_of
from surefoot.errors import EnvironmentFault, SettingError
from surefoot.geometry import fisher_operator, surrogate_gradient
from surefoot.iteration import begin, settled
from surefoot.lanes import kind, train_together
from surefoot.policy import flatten
from surefoot.rules import RULES
from surefoot.rules.natural import measured
from surefoot.sources import make_source
from surefoot.stages import estimate_stage
from surefoot.sweep import plain_settings
from surefoot.training import train
from surefoot.turns import Plan

TINY = {"envs": 8, "horizon": 16, "hidden": (8,), "critic_hidden": (8,), "critic_epochs": 1, "evaluation_episodes": 3}
TIMES = {"seconds", "collect_seconds", "update_seconds", "certify_seconds", "critic_seconds"}
WALK = functional_probes.walk()
UNLUCKY = dataclasses.replace(functional_probes.walk(chance=1 / 2200), name="unlucky")
RADII = (0.003, 0.01, 0.03)


def rows_of(run):
    return [{key: value for key, value in row.items() if key not in TIMES} for row in history.read(run).rows]


def different(name, index):
    """The rule and the settings of lane `index`: its seed and every number that lanes may differ in."""
    length = {"ppo": {"step_size": 1e-3 * (index + 1)}, "kl-penalty": {"multiplier": 1.0 + index}}
    rule = RULES[name](**length.get(name, {"radius": RADII[index]}))
    numbers = {
        "discount": 0.99 - 0.02 * index,
        "gae_lambda": 0.95 - 0.1 * index,
        "critic_step_size": 1e-3 * (1 + index),
    }
    return rule, config.make_run(seed=5 + index, **numbers, **TINY)


def lanes_and_runs_alone(name, environment, updates, dtype=np.float64):
    """The chunk of three lanes, and each of them alone; what they began with is the fourth."""
    source = make_source(environment, config.make_run(**TINY).collection)
    plans = [different(name, index) for index in range(3)]
    begun = [begin(source, rule, run, dtype) for rule, run in plans]
    numbers = [numbers_of(rule, run, dtype) for rule, run in plans]
    one = jax.jit(make_chunk(source))
    alone = [fetched("walk", one, each, *start, updates, updates) for each, start in zip(numbers, begun, strict=True)]
    wanted = np.full(3, updates, np.int32)
    every = jax.jit(jax.vmap(make_chunk(source), in_axes=(0, 0, 0, None, 0)))
    side_by_side = fetched("walk", every, lanes._stacked(numbers), *lanes._stacked(begun), updates, wanted)
    return plans, alone, side_by_side, begun


def close(one, other):
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(close(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(close, one, other))
    if isinstance(one, float) and isinstance(other, float):
        return bool(np.isclose(one, other, rtol=1e-6, atol=1e-9, equal_nan=True))
    return one == other


@pytest.mark.long
@pytest.mark.parametrize("name", [name for name in RULES if name != "pi"])
def test_each_lane_is_the_run_alone_in_float64(name, x64):
    plans, alone, side_by_side, _ = lanes_and_runs_alone(name, WALK, 20)
    for index, ((rule, run), mine) in enumerate(zip(plans, alone, strict=True)):
        assert int(mine.count) == int(side_by_side.count[index]) == 20
        for a, b in zip(
            jax.tree.leaves(mine.learner.policy), jax.tree.leaves(side_by_side.learner.policy), strict=True
        ):
            np.testing.assert_allclose(a, b[index], rtol=1e-6, atol=1e-9)
        both = zip(iterations(mine, rule, run), iterations(side_by_side, rule, run, index), strict=True)
        for update, (one, other) in enumerate(both):
            one, other = (settled(made.row) | made.judgement for made in (one, other))
            assert {key for key in one if not close(one[key], other[key])} == set(), update


QUICK = ("trpo",)
EVERY = [pytest.param(name, marks=() if name in QUICK else pytest.mark.long) for name in RULES if name != "pi"]


def distance(one, other):
    """Of `other` from `one`, as a share of its length."""
    assert np.linalg.norm(one) > 0
    return np.linalg.norm(other - one) / np.linalg.norm(one)


@pytest.mark.parametrize("name", EVERY)
def test_a_lanes_gradient_fisher_product_and_step_in_float32_are_those_of_the_run_alone(name):
    plans = [different(name, index) for index in range(3)]
    source = make_source(WALK, plans[0][1].collection)
    begun = [begin(source, rule, run) for rule, run in plans]
    # The same experience: were it collected side by side, the last bit of a probability might choose another action.
    trajectories = [source.collect(learner.policy, state, learner.key)[0] for learner, state in begun]

    def made(numbers, learner, trajectory):
        rule = numbers.rule.cast(learner.policy)
        batch, _ = estimate_stage(
            learner.policy, learner.critic.critic, learner.returns, trajectory, numbers.run.estimator
        )
        after, _, _ = numbers.rule.update(learner.policy, learner.memory, batch, learner.key)
        batch, _ = measured(rule, batch)
        gradient = surrogate_gradient(learner.policy, batch)
        step = flatten(after)[0] - flatten(learner.policy)[0]
        return gradient, fisher_operator(learner.policy, batch)(gradient), step

    given = [
        (numbers_of(*plan, np.float32), learner, trajectory)
        for plan, (learner, _), trajectory in zip(plans, begun, trajectories, strict=True)
    ]
    every = jax.jit(jax.vmap(made))(*lanes._stacked(given))
    alone = jax.jit(made)
    for index, mine in enumerate(given):
        for one, other, most in zip(alone(*mine), every, (1e-5, 1e-5, 1e-2), strict=True):
            assert distance(one, other[index]) < most


@pytest.mark.long
@pytest.mark.parametrize("name", [name for name in RULES if name != "pi"])
def test_a_lanes_first_step_in_float32_is_that_of_the_run_alone(name):
    _, alone, side_by_side, begun = lanes_and_runs_alone(name, WALK, 1, np.float32)
    for index, ((before, _), mine) in enumerate(zip(begun, alone, strict=True)):
        start, rebuilt = flatten(before.policy)[0], jax.tree.map(lambda leaf, i=index: leaf[i], side_by_side.learner)
        step, lanes_step = (flatten(learner.policy)[0] - start for learner in (mine.learner, rebuilt))
        assert distance(step, lanes_step) < 1e-2


@pytest.fixture(scope="module")
def six(tmp_path_factory):
    """Six runs with other seeds and radii, made together; in each of them a step fails with a chance of a half."""
    folder = tmp_path_factory.mktemp("lanes")
    plans = [
        Plan(folder / f"s{seed}", sf.TRPO(radius=radius), config.make_run(seed=seed, steps=1500, **TINY))
        for seed, radius in enumerate(RADII * 2)
    ]
    return plans, train_together(UNLUCKY, plans, progress=False)


def test_a_lane_that_goes_wrong_is_told_of_and_the_others_go_on(six):
    plans, outcomes = six
    failed = [outcome.error is not None for outcome in outcomes]
    assert 0 < sum(failed) < 6
    for plan, outcome in zip(plans, outcomes, strict=True):
        rows = rows_of(plan.folder)
        assert [row["update"] for row in rows] == list(range(1, len(rows) + 1))
        if outcome.error:
            assert "walk" in outcome.error or "step" in outcome.error
            assert outcome.run is None
            assert not rows or rows[-1]["steps"] < 1500
        else:
            assert outcome.run.path == plan.folder
            assert outcome.run.steps == rows[-1]["steps"] >= 1500 > rows[-2]["steps"]
            assert json.loads((plan.folder / "evaluation.json").read_text())["return"]["episodes"] == 3
            assert all(np.isfinite(row["kl"]) for row in rows)
        sf.load(plan.folder).act(np.zeros(3, np.float32))


@pytest.mark.long
def test_a_lanes_first_update_in_float32_is_that_of_the_run_alone(six, tmp_path):
    plans, _ = six
    for plan in plans[:1]:
        settings = TINY | {"steps": 100, "seed": plan.run.seed}
        train(UNLUCKY, plan.rule, out=tmp_path / "alone", progress=False, **settings)
        one, other = rows_of(tmp_path / "alone")[0], rows_of(plan.folder)[0]
        assert one["experience"] == other["experience"]
        for key in ("kl", "predicted_kl", "surrogate_gain", "entropy", "step_length", "reward_mean", "radius"):
            np.testing.assert_allclose(one[key], other[key], rtol=1e-2, err_msg=key)


def test_lanes_that_were_stopped_go_on_to_the_same_bits(six, tmp_path):
    plans, outcomes = six
    parts = [plan._replace(folder=tmp_path / plan.folder.name) for plan in plans]
    told = []
    first = train_together(UNLUCKY, parts, progress=False, stop=lambda: True, told=told.append)
    assert all(outcome.run is None for outcome in first)
    assert any(outcome.error.startswith("stopped after update") for outcome in first)
    finished = [place for place, outcome in enumerate(first) if outcome.run]
    stale = next(part.folder for part, one, two in zip(parts, first, outcomes, strict=True) if two.run and not one.run)
    (stale / "report.html").write_text("of where it went wrong")
    again = train_together(UNLUCKY, parts, finished=finished, progress=False, told=told.append)
    assert not (stale / "report.html").exists()
    for plan, part, outcome, second in zip(plans, parts, outcomes, again, strict=True):
        assert (outcome.run is None) == (second.run is None)
        assert rows_of(plan.folder) == rows_of(part.folder)
        policies = [(folder / "policy" / "policy.safetensors").read_bytes() for folder in (plan.folder, part.folder)]
        assert policies[0] == policies[1]


def test_what_cannot_be_lanes_of_one_program_is_refused(tmp_path):
    run = config.make_run(**TINY)
    plans = [Plan(tmp_path / "a", sf.TRPO(), run), Plan(tmp_path / "b", sf.TRPO(iterations=3), run)]
    with pytest.raises(SettingError, match="differ only in seeds and in numbers"):
        train_together(WALK, plans)
    with pytest.raises(SettingError, match="written in JAX"):
        train_together("CartPole-v1", plans[:1])
    assert kind(sf.TRPO(), config.make_run(guard=True)) is None
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(("lanes_at_most", "expected"), [(None, [7]), (7, [7]), (3, [2, 2, 3]), (1, [1] * 7)])
def test_groups_are_of_nearly_one_size(lanes_at_most, expected, monkeypatch):
    monkeypatch.setattr(lanes, "_room", lambda: None)
    assert [len(part) for part in lanes._groups(None, list(range(7)), lanes_at_most)] == expected


@pytest.mark.long
def test_lanes_lie_on_every_device_and_one_that_is_left_over_is_filled_up(tmp_path):
    assert jax.local_device_count() == 2
    plans = [Plan(tmp_path / str(index), *different("trpo", index)) for index in range(3)]
    source = make_source(WALK, plans[0].run.collection)
    program = lanes._program(source, plans)
    assert program.lanes == 4
    assert len(program.spread.device_set) == 2
    assert program.size > lanes._program(source, plans[:1]).size
    outcomes = train_together(WALK, plans, progress=False)
    for plan, outcome in zip(plans, outcomes, strict=True):
        alone = train(
            WALK, plan.rule, out=tmp_path / f"{plan.folder.name}-alone", progress=False, **plain_settings(plan.run)
        )
        one, other = rows_of(outcome.run.path), rows_of(alone.path)
        assert len(one) == len(other)
        assert one[0]["steps"] == other[0]["steps"]
        np.testing.assert_allclose(one[0]["kl"], other[0]["kl"], rtol=1e-2)


def test_the_command_sees_every_core_as_a_device_unless_the_user_has_said():
    code = (
        "from surefoot.compilation import cores, see_cpu_devices; see_cpu_devices(len(cores())); import jax;"
        "before = jax.local_device_count(); see_cpu_devices(7); print(before, jax.local_device_count())"
    )
    cores = len(os.sched_getaffinity(0))
    for flags, devices in (("", cores), ("--xla_force_host_platform_device_count=3", 3)):
        told = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            env=os.environ | {"XLA_FLAGS": flags},
        )
        assert told.stdout.split() == [str(devices)] * 2


def test_groups_fit_into_memory(monkeypatch):
    monkeypatch.setattr(lanes, "_room", lambda: 1000)
    monkeypatch.setattr(
        lanes, "_program", lambda source, plans: lanes._Program(None, len(plans), None, 300 * len(plans))
    )
    assert [len(part) for part in lanes._groups(None, list(range(8)), None)] == [2, 2, 2, 2]


def test_what_goes_wrong_around_a_lane_stops_no_other(six, tmp_path, monkeypatch):
    plans, outcomes = six
    sound = [place for place, outcome in enumerate(outcomes) if outcome.run]
    parts = [plan._replace(folder=tmp_path / plan.folder.name) for plan in plans]
    broken, unevaluated = parts[sound[0]].folder, parts[sound[1]].folder
    broken.mkdir()
    (broken / "config.json").write_text("{")
    conclude = lanes.conclude

    def evaluated(folder, *given, **options):
        if folder == unevaluated:
            raise EnvironmentFault("it broke in its evaluation")
        return conclude(folder, *given, **options)

    monkeypatch.setattr(lanes, "conclude", evaluated)
    again = train_together(UNLUCKY, parts, progress=False)
    assert "config.json" in again[sound[0]].error
    assert again[sound[1]].error == "it broke in its evaluation"
    for place, (plan, part) in enumerate(zip(plans, parts, strict=True)):
        if place != sound[0]:
            assert rows_of(plan.folder) == rows_of(part.folder)
            assert (again[place].run is None) == (place == sound[1] or place not in sound)


@pytest.mark.parametrize("places", [{0}, {0, 5}])
def test_a_lane_whose_environment_fails_in_its_first_reset_stops_no_other(places, six, tmp_path, monkeypatch):
    plans, outcomes = six
    parts = [plan._replace(folder=tmp_path / plan.folder.name) for plan in plans]
    begin, broken = lanes.begin, {plans[place].run.seed for place in places}

    def begun(source, rule, run):
        if run.seed in broken:
            raise EnvironmentFault("it broke in its reset")
        return begin(source, rule, run)

    monkeypatch.setattr(lanes, "begin", begun)
    again = train_together(UNLUCKY, parts, progress=False)
    for place, (plan, part) in enumerate(zip(plans, parts, strict=True)):
        if place in places:
            assert again[place].error == "it broke in its reset"
        else:
            assert rows_of(plan.folder) == rows_of(part.folder)
            assert (again[place].run is None) == (outcomes[place].run is None)


def test_environments_that_fail_in_every_first_reset_are_told_of(six, tmp_path, monkeypatch):
    plans, _ = six

    def begun(*_):
        raise EnvironmentFault("it broke in its reset")

    monkeypatch.setattr(lanes, "begin", begun)
    parts = [plan._replace(folder=tmp_path / plan.folder.name) for plan in plans]
    with pytest.raises(EnvironmentFault, match="it broke in its reset"):
        train_together(UNLUCKY, parts, progress=False)


def test_a_run_in_an_environment_given_itself_has_its_name_and_says_what_going_on_takes(six):
    plans, _ = six
    told = json.loads((plans[0].folder / "config.json").read_text())["environment"]
    assert told == sf.load(plans[0].folder).environment == "<unlucky>"
    with pytest.raises(sf.EnvironmentNotFound, match=r"^environment <unlucky> was given as an object.*environment=…"):
        sf.resume(plans[0].folder)


def test_each_run_of_a_study_made_in_lanes_has_a_page_and_a_picture(six, tmp_path, monkeypatch):
    plans, outcomes = six
    made = next(plan.folder for plan, outcome in zip(plans, outcomes, strict=True) if outcome.run)
    assert not (made / "report.html").exists()

    def together(environment, plans, **_):
        for plan in plans:
            shutil.copytree(made, plan.folder)
        return [outcome for outcome in outcomes if outcome.run][:1] * len(plans)

    monkeypatch.setattr("surefoot.course.train_together", together)
    out = tmp_path / "study"
    sf.study(UNLUCKY, seeds=2, out=out, progress=False, steps=1500, **TINY)
    drawn = [out / "runs" / run / file for run in ("s0", "s1") for file in ("report.html", "learning_curve.png")]
    assert [file for file in drawn if not file.exists()] == []
    assert "&lt;unlucky&gt;" in drawn[0].read_text()
    # Going on draws what a kill left undrawn, unless it is asked to stop, and nothing else.
    drawn[0].unlink()
    before = [file.stat().st_mtime_ns for file in drawn[2:]]
    for stop in (lambda: True, None):
        assert not drawn[0].exists()
        sf.resume_study(out, environment=UNLUCKY, progress=False, stop=stop)
    assert drawn[0].exists()
    assert before == [file.stat().st_mtime_ns for file in drawn[2:]]


def test_plans_that_are_finished_are_left_as_they_are(six):
    plans, _ = six
    before = {file: file.stat().st_mtime_ns for plan in plans for file in plan.folder.rglob("*")}
    outcomes = train_together(UNLUCKY, plans, finished=range(len(plans)), progress=False)
    assert outcomes == [lanes.Outcome(None, None)] * len(plans)
    assert before == {file: file.stat().st_mtime_ns for plan in plans for file in plan.folder.rglob("*")}
