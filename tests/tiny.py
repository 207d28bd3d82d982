"""Runs as small as runs can be, what is said of those that fail, and what they leave."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest

import surefoot as sf
from surefoot import history
from surefoot.doctor import diagnose
from surefoot.report.page import write_report

TINY = {
    "envs": 2,
    "horizon": 8,
    "hidden": (8,),
    "critic_hidden": (8,),
    "critic_epochs": 1,
    "vectorisation": "sync",
    "evaluation_episodes": 1,
    "progress": False,
}


def train(environment: Any, out: Path, rule: Any = "pg", **settings: Any) -> sf.Run:
    """A tiny run that warns of nothing."""
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        warnings.simplefilter("ignore", ResourceWarning)  # another test's
        try:
            return sf.train(environment, rule, out=out, **{**TINY, **settings})
        finally:
            assert [str(warning.message) for warning in warned] == []


def refusal(kind: type[Exception], environment: Any, out: Path, rule: Any = "pg", **settings: Any) -> str:
    """The one line with which a run is refused or given up."""
    with pytest.raises(kind) as raised:
        train(environment, out, rule, **settings)
    assert type(raised.value) is kind
    message = str(raised.value)
    assert message.strip()
    assert "\n" not in message
    return message


def assert_loads(folder: Path, updates: int) -> history.History:
    """The run folder tells of so many updates, can be reported and examined, and its policy acts."""
    told = history.read(folder)
    assert [row["update"] for row in told.rows] == list(range(1, updates + 1))
    write_report([folder])
    diagnose(told)
    agent = sf.load(folder)
    agent.observation_space.seed(0)
    assert agent.action_space.contains(agent.act(agent.observation_space.sample())[()])
    if updates:
        # The policy of the last update, not of the first.
        assert agent.policy.normaliser.count == told.rows[-1]["steps"]
    return told


def assert_complete(folder: Path, updates: int) -> None:
    """It loads, and records every step of two environments in blocks of eight."""
    told = assert_loads(folder, updates)
    assert [row["steps"] for row in told.rows] == [16 * (number + 1) for number in range(updates)]
    assert told.config["envs"] == 2
    assert told.config["versions"]["surefoot"] == sf.__version__
