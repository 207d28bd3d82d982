"""Whatever is wrong with what was given: one line that says it, and nothing lost of what was recorded before."""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import jax
import numpy as np
import pytest
from gymnasium import spaces

import probes
import surefoot as sf
from surefoot import config, history
from surefoot.policy import make_policy
from surefoot.rules import RULES
from surefoot.sources import make_source
from tiny import refusal, train

# Environments that there are not.


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ("CartPol-v1", ["'CartPol-v1'", "CartPole-v1"]),
        ("cartpole-v1", ["'cartpole-v1'", "CartPole-v1"]),
        ("CartPole-v77", ["'CartPole-v77'", "CartPole-v1"]),
        ("Pendulum", ["'Pendulum'", "Pendulum-v1"]),
        ("", ["''", "CartPole-v1"]),
        ("Zxqj", ["'Zxqj'", "CartPole-v1"]),
        ("no_such_module:thing", ["'no_such_module:thing'", "no_such_module", "package.module:callable"]),
        ("probes:Countr", ["'probes:Countr'", "Counter"]),
        ("probes:numbers_", ["'probes:numbers_'", "probes"]),
        ("probes:no_environment", ["'probes:no_environment'", "str", "gymnasium.Env"]),
        (probes.no_environment, ["probes:no_environment", "str", "gymnasium.Env"]),
        (gymnasium.make("CartPole-v1"), ["CartPole", "callable"]),
        (3, ["3", "callable"]),
        (None, ["None", "callable"]),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_what_names_no_environment_is_refused_with_what_would(environment, words, tmp_path):
    line = refusal(sf.EnvironmentNotFound, environment, tmp_path / "run")
    assert all(word in line for word in words)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("environment", ["probes:raising", probes.raising], ids=["by name", "itself"])
def test_a_callable_that_raises_is_a_fault_of_the_environment(environment, tmp_path):
    line = refusal(sf.EnvironmentFault, environment, tmp_path / "run")
    assert "probes:raising" in line
    assert "ZeroDivisionError: the probe failed on purpose" in line
    assert not (tmp_path / "run").exists()


def test_a_module_that_raises_while_it_is_imported_is_named(tmp_path, monkeypatch):
    (tmp_path / "broken_tasks.py").write_text("def task(:\n")
    monkeypatch.syspath_prepend(tmp_path)
    line = refusal(sf.EnvironmentNotFound, "broken_tasks:task", tmp_path / "run")
    assert "'broken_tasks:task'" in line
    assert "SyntaxError" in line or "invalid syntax" in line
    assert "broken_tasks" not in sys.modules


@pytest.mark.parametrize(
    ("observation_space", "action_space", "word"),
    [
        (spaces.Box(0, 255, (8, 8), np.uint8), spaces.Discrete(2), "observation space"),
        (spaces.Text(3), spaces.Discrete(2), "observation space"),
        (probes.numbers(2), spaces.Tuple([spaces.Discrete(2)]), "action space"),
    ],
)
def test_an_unsupported_space_is_refused_and_says_what_is_supported(observation_space, action_space, word, tmp_path):
    def environment():
        made = probes.Strict(action_space)
        made.observation_space = observation_space
        return made

    line = refusal(sf.UnsupportedSpace, environment, tmp_path / "run")
    assert word in line
    assert "supported are" in line
    assert not (tmp_path / "run").exists()


# Settings.


def illegal(owner: type, field: dataclasses.Field) -> list[Any]:
    """Values that a setting must not take, from the limits that it states itself."""
    kind = str(field.type)
    limits = field.metadata.get("limits", {})
    if kind.startswith("Literal"):
        return ["", "no such choice", 1, None]
    if kind == "bool":
        return [1, 0.0, "yes", None]
    past = {"above": lambda v: v, "at_least": lambda v: v - 1, "below": lambda v: v, "at_most": lambda v: v + 1}
    values = [past[limit](value) for limit, value in limits.items()]
    values += [np.nan, np.inf, -np.inf, "1", True]
    values += [1.5] if "int" in kind else []
    values += [] if "None" in kind else [None]
    if kind.startswith("tuple"):
        return [(8, value) for value in values] + [8, "8", *([] if "None" in kind else [None])]
    return values


RUN = [
    pytest.param(name, value, id=f"{name}={value!r}")
    for name in config.run_options()
    for value in illegal(*config.option_field(name))
]
RULE = [
    pytest.param(rule, field.name, value, id=f"{rule}.{field.name}={value!r}")
    for rule, settings in config.RULES.items()
    for field in dataclasses.fields(settings)
    for value in illegal(settings, field)
]


def test_the_tables_reach_every_setting():
    assert {param.values[0] for param in RUN} == set(config.run_options())
    assert len(config.run_options()) >= 19
    assert {param.values[:2] for param in RULE} == {
        (rule, field.name) for rule, settings in config.RULES.items() for field in dataclasses.fields(settings)
    }


@pytest.mark.parametrize(("name", "value"), RUN)
def test_an_illegal_setting_is_refused_by_its_own_name_with_what_would_be_legal(name, value, tmp_path):
    with pytest.raises(sf.SettingError) as raised:
        sf.train("CartPole-v1", out=tmp_path / "run", **{name: value})
    line = str(raised.value)
    shown = value[-1] if isinstance(value, tuple) else value
    assert re.match(rf"{name} must be .+, but .*{re.escape(repr(shown))}.* came$", line)
    assert "\n" not in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("rule", "name", "value"), RULE)
def test_an_illegal_setting_of_a_rule_is_refused(rule, name, value):
    with pytest.raises(sf.SettingError) as raised:
        RULES[rule](**{name: value})
    line = str(raised.value)
    assert re.match(rf"{name} must be .+, but .*{re.escape(repr(value))}.* came$", line)
    assert "\n" not in line


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"horizn": 8}, ["'horizn'", "'horizon'"]),
        ({"env": 8}, ["'env'", "'envs'"]),
        ({"critic_epoch": 1}, ["'critic_epoch'", "'critic_epochs'"]),
        ({"Seed": 1}, ["'Seed'", "'seed'"]),
        ({"radius": 0.01}, ["'radius'"]),
        ({"collection": None}, ["'collection'"]),
    ],
    ids=repr,
)
def test_an_unknown_setting_is_refused_with_the_nearest(settings, words, tmp_path):
    with pytest.raises(sf.SettingError) as raised:
        sf.train("CartPole-v1", out=tmp_path / "run", **settings)
    assert all(word in str(raised.value) for word in words)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ("trop", ["'trop'", "'trpo'"]),
        ("TRPO", ["'TRPO'", "'trpo'"]),
        ("", ["''", "trpo, npg, pg"]),
        (None, ["None", "trpo"]),
        (sf.TRPO, ["TRPO", "trpo"]),
        ({"rule": "trpo"}, ["trpo"]),
    ],
    ids=repr,
)
def test_an_unknown_rule_is_refused_with_the_nearest(rule, words, tmp_path):
    line = refusal(sf.SettingError, "CartPole-v1", tmp_path / "run", rule)
    assert line.startswith("rule must be ")
    assert all(word in line for word in words)
    assert not (tmp_path / "run").exists()


# Folders.


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {
        str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_a_folder_that_holds_a_run_is_refused_and_stays_as_it_is(tmp_path):
    train(partial(probes.Lengths, (3,)), tmp_path / "run", steps=16)
    before = contents(tmp_path / "run")
    assert {"config.json", "metrics.jsonl", "evaluation.json", "policy/policy.json"} <= before.keys()
    line = refusal(sf.RunError, partial(probes.Lengths, (3,)), tmp_path / "run", steps=16)
    assert str(tmp_path / "run") in line
    assert "already holds" in line
    assert contents(tmp_path / "run") == before


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path / "file", tmp_path / "file" / "run"):
        line = refusal(sf.RunError, partial(probes.Lengths, (3,)), out, steps=16)
        assert line.startswith("out: ")
        assert str(tmp_path / "file") in line
    assert (tmp_path / "file").read_text() == "mine"


def test_a_run_is_written_by_strict_json(tmp_path):
    def refuse(word):
        raise AssertionError(word)

    run = train(partial(probes.Lengths, (30,)), tmp_path / "run", steps=16)
    lines = (run.path / "metrics.jsonl").read_text().splitlines()
    texts = [path.read_text() for path in run.path.rglob("*.json")]
    assert len(texts) == 4  # settings, policy, evaluation, a checkpoint
    for text in [*texts, *lines]:
        json.loads(text, parse_constant=refuse)
    assert history.read(run.path).rows[0]["return_mean"] is None


# Masks.


@pytest.mark.long
def test_a_run_of_taxi_never_takes_an_action_that_its_mask_forbids(tmp_path):
    run = train("probes:strict_taxi", tmp_path / "run", "trpo", steps=400, horizon=128)
    assert run.steps >= 400
    assert run.updates == 2
    assert [row["accepted"] for row in history.read(run.path).rows] == [True, True]


def test_taxi_gives_its_masks_and_the_policy_obeys():
    source = make_source("Taxi-v4", config.Collection(envs=2, horizon=250, vectorisation="sync"))
    try:
        run = config.make_run(hidden=(8,))
        policy = make_policy(source.observation_space, source.action_space, run.network, jax.random.key(0))
        trajectory, _ = source.collect(policy, source.reset(jax.random.key(1)), jax.random.key(2))
    finally:
        source.close()
    allowed = np.take_along_axis(trajectory.mask[:-1], trajectory.action[..., None], axis=-1)[..., 0]
    assert trajectory.mask.shape == (251, 2, 6)
    assert not trajectory.mask.all()
    assert allowed[~trajectory.reset].all()
    assert trajectory.truncated.any()
