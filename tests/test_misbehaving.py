"""Environments that misbehave: each kind has a stated outcome, and a run folder that loads afterwards."""

from __future__ import annotations

import json
import re
from functools import partial

import jax
import numpy as np
import pytest
from gymnasium import spaces

import probes
import rogues
import surefoot as sf
from surefoot import cli, config, evaluation, history
from surefoot.policy import make_policy
from surefoot.rules import RULES
from surefoot.sources import make_source
from surefoot.training import resume
from tiny import assert_complete, assert_loads, refusal, train

# Environments that go wrong.

AT = 19
SAID = {
    # fault: what the line says went wrong, in which source step
    "nan observation": (r"returned observation\['box'\] \[ *0\. +nan\]", AT),
    "infinite observation": (r"returned observation\['box'\] \[-inf +0\.\]", AT),
    "observation beyond float32": (r"returned observation\['wide'\] \[.*(inf|1e\+39).*\]", AT),
    "observation of a wrong shape": (r"observation\['box'\] of shape \(3,\), but its space says \(2,\)", AT),
    "observation without a key": (r"observation that has not the keys \['box', 'which', 'wide'\]", AT),
    "observation that is no number": (r"observation\['which'\].*three", AT),
    "observation that is nothing": (r"observation\['which'\].*None", AT),
    "observation between two choices": (r"observation\['which'\].*1\.5", AT),
    "observation outside its space": (r"returned observation\['which'\] 4", AT),
    "nan reward": (r"returned reward nan", AT),
    "infinite reward": (r"returned reward -inf", AT),
    "reward beyond float32": (r"returned reward (1e\+39|inf)", AT),
    "reward of a wrong shape": (r"reward of shape \(2,\)", AT),
    "reward that is nothing": (r"reward.*None", AT),
    "nothing allowed": (r"returned action_mask .*nothing allowed", AT),
    "mask of a wrong shape": (r"action_mask of shape \(4,\), but 3 actions", AT),
    "info that is nothing": (r"info.*None", AT),
    "four values": (r"returned 4 values from step, where observation, reward, terminated, truncated and info", AT),
    "large reward": (r"returned reward 1e\+25, but at most 1e\+15 can be learned from; scale the rewards down", AT),
    "reward that is text": (r"returned reward '1', which is not a number", AT),
    "end that is nothing": (r"returned terminated None, which is neither True nor False", AT),
    "end that is text": (r"returned truncated 'False', which is neither True nor False", AT),
    "ends the process": (r"raised in step: SystemExit: 3", AT),
    "raises no Exception": (r"raised in step: BaseException: the probe failed on purpose", AT),
    "hangs": (r"has not come back from step after 0\.2 s; raise step_seconds", AT),
    "hangs and swallows": (r"has not come back from step after 0\.2 s", AT),
    "raises": (r"raised in step: ZeroDivisionError: the probe failed on purpose", AT),
    "raises in reset": (r"raised in reset: ZeroDivisionError: the probe failed on purpose", AT + 1),
}


def test_every_fault_is_asked_for():
    assert SAID.keys() == probes.FAULTS.keys()


@pytest.mark.parametrize("fault", SAID)
def test_a_fault_is_told_in_one_line_and_leaves_a_complete_run(fault, tmp_path):
    said, step = SAID[fault]
    environment = probes.NewestIsFaulty(fault, AT)
    line = refusal(sf.EnvironmentFault, environment, tmp_path / "run", steps=100, step_seconds=0.2)
    assert line.startswith(f"probes:NewestIsFaulty: step {step}: environment 1 ")
    assert re.search(said, line)
    assert str(tmp_path / "run") in line
    assert_complete(tmp_path / "run", updates=2)


@pytest.mark.parametrize("fault", ["nan observation", "observation outside its space"])
def test_a_fault_in_the_first_observation_is_told_as_the_resets(fault, tmp_path):
    line = refusal(sf.EnvironmentFault, probes.NewestIsFaulty(fault, -1), tmp_path / "run")
    assert line.startswith("probes:NewestIsFaulty: reset: environment 1 ")
    assert re.search(SAID[fault][0], line)
    assert_complete(tmp_path / "run", updates=0)


def test_a_fault_in_the_first_reset_leaves_nothing(tmp_path):
    line = refusal(sf.EnvironmentFault, partial(probes.Faulty, "raises in reset", -1), tmp_path / "run")
    assert "environment 0 raised in reset: ZeroDivisionError: the probe failed on purpose" in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("fault", ["nan observation", "observation that is no number", "raises"])
def test_a_fault_in_a_worker_process_is_told_as_well(fault, tmp_path, capfd):
    line = refusal(
        sf.EnvironmentFault, partial(probes.Faulty, fault, AT), tmp_path / "run", steps=100, vectorisation="async"
    )
    assert re.search(rf": step {AT}: environment [01] ", line)
    assert re.search(SAID[fault][0], line)
    assert_complete(tmp_path / "run", updates=2)
    assert "Traceback" not in "".join(capfd.readouterr())


def test_a_callable_inside_a_partial_is_named_as_itself(tmp_path):
    line = refusal(sf.EnvironmentFault, partial(probes.Faulty, "raises", 3), tmp_path / "run")
    assert line.startswith("probes:Faulty: step 3: ")


def test_a_fault_in_the_evaluation_names_the_step_and_leaves_the_run_complete(tmp_path):
    # Training ends after eight steps of each environment.
    line = refusal(sf.EnvironmentFault, probes.NewestIsFaulty("raises", 10), tmp_path / "run", steps=16)
    assert line.startswith("probes:NewestIsFaulty: evaluation: step 10: environment 0 raised in step: ZeroDivision")
    assert_complete(tmp_path / "run", updates=1)


@pytest.mark.parametrize("deed", [rogues.kill, rogues.leave, rogues.deaf_for_ever])
def test_a_worker_that_is_killed_or_hangs_leaves_a_complete_run(deed, tmp_path):
    said = {
        rogues.kill: "lost its worker process, which was ended by SIGKILL",
        rogues.leave: "raised in step: SystemExit: 3",
        rogues.deaf_for_ever: "has not come back from step after 1 s; raise step_seconds",
    }
    environment = partial(rogues.Doing, deed, AT)
    line = refusal(sf.EnvironmentFault, environment, tmp_path / "run", steps=100, vectorisation="async", step_seconds=1)
    # Two resets come before its step.
    assert re.search(rf"^rogues:Doing: step {AT + 2}: environment [01] ", line)
    assert said[deed] in line
    assert_loads(tmp_path / "run", updates=2)


def test_a_run_goes_on_once_its_environment_is_mended(tmp_path):
    never = 10**9
    whole = train(partial(probes.Faulty, "raises", never), tmp_path / "whole", steps=100)
    refusal(sf.EnvironmentFault, probes.NewestIsFaulty("raises", AT), tmp_path / "run", steps=100, checkpoint_seconds=0)
    done = resume(tmp_path / "run", environment=partial(probes.Faulty, "raises", never), progress=False)
    assert_loads(tmp_path / "run", updates=len(history.read(whole.path).rows))
    assert done.evaluation == whole.evaluation
    tensors = [(run / "policy" / "policy.safetensors").read_bytes() for run in (whole.path, tmp_path / "run")]
    assert tensors[0] == tensors[1]


# Rewards of every size.


def numbers_of(row):
    return np.concatenate(
        [np.ravel(v).astype(float) for v in row.values() if not isinstance(v, (str, dict, type(None)))]
    )


def strange(row):
    """The metrics of a row that are written as words."""
    words = ("nan", "inf", "-inf")
    return {key for key, value in row.items() if value in words or (isinstance(value, list) and {*value} & {*words})}


def assert_finite(folder, rule="trpo"):
    for row in history.read(folder).rows:
        assert np.isfinite(numbers_of(row)).all()
        assert strange(row) <= ({"radius"} if rule == "ppo" else set())
    for leaf in jax.tree.leaves(sf.load(folder).policy):
        assert np.isfinite(np.asarray(leaf, float)).all()


@pytest.mark.parametrize("reward", [rogues.constant, rogues.noise, rogues.growing, rogues.largest])
@pytest.mark.parametrize(
    "rule",
    [rule if rule in ("trpo", "ppo") else pytest.param(rule, marks=pytest.mark.long) for rule in RULES if rule != "pi"],
)
def test_rewards_up_to_the_largest_leave_every_number_finite(rule, reward, tmp_path):
    run = train(partial(rogues.Rewarding, reward), tmp_path / "run", rule, steps=40)
    assert_finite(run.path, rule)
    assert all(row["accepted"] for row in history.read(run.path).rows)
    assert np.isfinite(run.evaluation["return"]["mean"])


# Episodes of every length.


def test_episodes_of_one_step_that_end_both_ways_are_learned_from(tmp_path):
    ends = (("terminated", 1), ("truncated", 1))
    run = train(partial(probes.Counter, ends), tmp_path / "run", steps=24, evaluation_episodes=4)
    rows = history.read(run.path).rows
    # Every other row is a reset.
    assert [row["experience"] for row in rows] == [8, 8, 8]
    assert [row["episodes"] for row in rows] == [8, 8, 8]
    assert {(row["terminations"], row["truncations"]) for row in rows} == {(4, 4)}
    assert run.evaluation["length"]["mean"] == 1
    assert_finite(run.path)


def test_an_environment_that_never_ends_is_trained_in_and_its_evaluation_is_cut(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(evaluation, "LONGEST_EPISODE", 30)
    settings = ["--envs", "2", "--horizon", "8", "--steps", "32", "--hidden", "8", "--critic-hidden", "8"]
    settings += ["--rule", "pg", "--critic-epochs", "1", "--evaluation-episodes", "3", "--out", str(tmp_path / "run")]
    assert cli.main(["train", "rogues:Endless", *settings]) == 0
    assert "(3 deterministic episodes; 3 had not ended and were cut)" in capsys.readouterr().out
    told = history.read(tmp_path / "run")
    assert [(row["episodes"], row["return_mean"]) for row in told.rows] == [(0, None)] * 2
    assert told.evaluation["cut"] == 3
    assert told.evaluation["return"] == {"mean": 30.0, "std": 0.0, "episodes": 3}
    assert cli.main(["evaluate", str(tmp_path / "run"), "--episodes", "1", "--allow-env"]) == 0
    assert "length  30.0 steps; 1 had not ended and was cut" in capsys.readouterr().out


@pytest.fixture(scope="module")
def agent():
    polite = rogues.Polite()
    policy = make_policy(
        polite.observation_space, polite.action_space, config.make_run(hidden=(8,)).network, jax.random.key(0)
    )
    return sf.Agent(policy, polite.observation_space, polite.action_space, "rogues:Polite")


@pytest.mark.parametrize(
    ("short", "asked", "played", "cut"),
    [
        (0, 5, 5, 5),
        (0, 45, 20, 20),  # after the first cuts nothing is begun
        (1, 20, 20, 0),
        (1, 45, 40, 20),
        (2, 45, 45, 5),
        (9, 45, 45, 0),
    ],
)
def test_an_evaluation_counts_what_it_cut_and_begins_nothing_after_it(short, asked, played, cut, agent, monkeypatch):
    monkeypatch.setattr(evaluation, "LONGEST_EPISODE", 30)
    result = sf.evaluate(agent, partial(rogues.Endless, short), episodes=asked)
    assert (result["return"]["episodes"], result["cut"]) == (played, cut)
    total = 30 * cut + 7 * (played - cut)
    assert result["return"]["mean"] == result["length"]["mean"] == pytest.approx(total / played)


def test_the_longest_episode_is_what_is_documented():
    assert evaluation.LONGEST_EPISODE == 30_000
    assert "30,000" in sf.evaluate.__doc__


def test_an_evaluation_goes_on_after_ends_in_which_nothing_is_allowed():
    environment = probes.Masked(closed=True)
    network = config.make_run(hidden=(8,)).network
    policy = make_policy(environment.observation_space, environment.action_space, network, jax.random.key(0))
    agent = sf.Agent(policy, environment.observation_space, environment.action_space)
    assert sf.evaluate(agent, partial(probes.Masked, closed=True), episodes=45)["length"]["mean"] == 5


FAULTY = probes.Faulty("raises", 10**9)
IN_EVALUATION = [
    "nan observation",
    "observation beyond float32",
    "nan reward",
    "large reward",
    "nothing allowed",
    "hangs",
]


@pytest.mark.parametrize("fault", IN_EVALUATION)
def test_a_fault_in_an_evaluation_names_environment_and_step(fault):
    network = config.make_run(hidden=(8,)).network
    policy = make_policy(FAULTY.observation_space, FAULTY.action_space, network, jax.random.key(0))
    agent = sf.Agent(policy, FAULTY.observation_space, FAULTY.action_space)
    with pytest.raises(sf.EnvironmentFault) as raised:
        sf.evaluate(agent, probes.NewestIsFaulty(fault, 3), episodes=2, step_seconds=0.2)
    assert re.match(r"probes:NewestIsFaulty: evaluation: step 3: environment 1 ", str(raised.value))
    assert re.search(SAID[fault][0], str(raised.value))


# Environments that reach beyond themselves.


def collected(environment, agent):
    """Two collections, and the second once more from where the first ended, which replays it."""
    source = make_source(environment, config.Collection(envs=2, horizon=10, vectorisation="sync"))
    try:
        start = source.reset(jax.random.key(1))
        _, middle = source.collect(agent.policy, start, jax.random.key(2))
        second, _ = source.collect(agent.policy, middle, jax.random.key(3))
        replayed, end = source.collect(agent.policy, middle, jax.random.key(3))
        return jax.tree.leaves((second, replayed, end.actions))
    finally:
        source.close()


@pytest.mark.parametrize("rogue", [rogues.Scribbling, rogues.Reseeding])
def test_what_an_environment_does_to_shared_memory_or_generators_changes_no_bit(rogue, agent):
    polite, rude = collected(rogues.Polite, agent), collected(rogue, agent)
    assert len(polite) == len(rude)
    assert all(np.array_equal(one, other) for one, other in zip(polite, rude, strict=True))


def test_an_environment_that_scribbles_is_still_repeatable(agent):
    assert evaluation.repeatable(agent, rogues.Scribbling)


@pytest.mark.parametrize("vectorisation", ["sync", "async"])
def test_json_is_the_only_thing_on_standard_output_whatever_environments_print(vectorisation, tmp_path, capfd):
    settings = ["--envs", "2", "--horizon", "8", "--steps", "16", "--hidden", "8", "--critic-hidden", "8", "--json"]
    settings += ["--rule", "pg", "--critic-epochs", "1", "--evaluation-episodes", "1", "--out", str(tmp_path / "run")]
    assert cli.main(["train", "rogues:Printing", *settings, "--vectorisation", vectorisation]) == 0
    told = capfd.readouterr()
    assert json.loads(told.out)["run"] == str(tmp_path / "run")
    assert "by Python" in told.err
    assert "past Python" in told.err
    assert cli.main(["evaluate", str(tmp_path / "run"), "--episodes", "1", "--allow-env", "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["return"]["episodes"] == 1


def test_an_environment_that_cannot_be_closed_costs_nothing(tmp_path):
    run = train(rogues.Unclosable, tmp_path / "run", steps=16)
    assert_finite(run.path)
    assert run.evaluation["cut"] == 0


# Spaces.


@pytest.mark.parametrize(
    ("observation_space", "said"),
    [
        (spaces.Box(-1, 1, (0,), np.float32), "is not supported"),
        (spaces.Discrete(1_000_000), "would be 1,000,000 numbers"),
        (spaces.MultiDiscrete([40_000, 40_000]), "would be 80,000 numbers"),
        (spaces.Dict({}), "is empty"),
        (None, "has observation_space None; it must be a gymnasium.Space"),
        ("Box(2)", "has observation_space 'Box(2)'; it must be a gymnasium.Space"),
    ],
    ids=str,
)
def test_a_strange_observation_space_is_refused(observation_space, said, tmp_path):
    def environment():
        made = rogues.Polite()
        made.observation_space = observation_space
        return made

    line = refusal(sf.UnsupportedSpace, environment, tmp_path / "run")
    assert said in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("action_space", "said"),
    [
        (spaces.Box(-1, 1, (0,), np.float32), "is not supported"),
        (spaces.Box(0, 9, (2,), np.int32), "is not supported"),
        (spaces.Dict({"a": spaces.Discrete(2)}), "is not supported"),
    ],
    ids=str,
)
def test_a_strange_action_space_is_refused(action_space, said, tmp_path):
    line = refusal(sf.UnsupportedSpace, partial(rogues.Polite, action_space), tmp_path / "run")
    assert line.startswith("action space ")
    assert said in line
    assert not (tmp_path / "run").exists()


def test_bounds_of_nan_are_told_as_gymnasium_refuses_them(tmp_path):
    def environment():
        return rogues.Polite(spaces.Box(np.full(2, np.nan, np.float32), np.ones(2, np.float32)))

    assert "cannot be made: ValueError: No low value" in refusal(sf.EnvironmentFault, environment, tmp_path / "run")


def test_an_environment_without_a_space_is_refused(tmp_path):
    line = refusal(sf.UnsupportedSpace, partial(rogues.Spaceless, probes.numbers(2)), tmp_path / "run")
    assert line == "environment 'rogues:Spaceless' has action_space None; it must be a gymnasium.Space"


@pytest.mark.parametrize(
    "action_space",
    [
        spaces.Discrete(1, start=5),
        spaces.Box(np.array([2, -1], np.float32), np.array([2, 1], np.float32)),
    ],
    ids=str,
)
def test_a_space_that_leaves_little_to_choose_is_lawful(action_space, tmp_path):
    run = train(partial(rogues.Polite, action_space), tmp_path / "run", steps=16)
    assert strange(history.read(run.path).rows[0]) <= {
        "multiplier",
        "multiplier_path",
    }  # inf where no step could be proposed
    assert np.isfinite(run.evaluation["return"]["mean"])
    assert action_space.contains(sf.load(run.path).act(np.zeros(2, np.float32))[()])


def test_a_multidiscrete_mask_that_leaves_one_choice_nothing_is_a_fault(tmp_path):
    def closed():
        made = probes.Masked(probes.Masked.MULTIDISCRETE)
        shown = made._show

        def show(over):
            observation, info = shown(over)
            if made._time == 3:
                info["action_mask"][:2] = 0  # of the first choice; the others keep theirs
            return observation, info

        made._show = show
        return made

    with pytest.raises(sf.EnvironmentFault, match=r"step 2: environment 0 returned action_mask 'nothing allowed'"):
        train(closed, tmp_path / "run", steps=100)
