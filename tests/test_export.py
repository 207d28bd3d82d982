"""The artefact as an ONNX file: onnxruntime computes what the agent does."""

from __future__ import annotations

import json

import equinox as eqx
import gymnasium
import jax
import numpy as np
import onnx
import onnxruntime
import pytest
from gymnasium import spaces

import probes
import surefoot as sf
from surefoot import agent as artefact
from surefoot import cli, config
from surefoot.networks import ACTIVATIONS
from surefoot.policy import make_policy
from surefoot.spaces import parse

NESTED = spaces.Dict(
    {
        "numbers": spaces.Box(-3, 3, (2,), np.float32),
        "inner": spaces.Tuple([spaces.Discrete(3, start=-1), spaces.MultiBinary((2, 2))]),
        "alone": spaces.Box(-1, 1, (), np.float64),
    }
)
NUMBERS = spaces.Box(-5, 5, (3,), np.float32)


def make_agent(observation_space, action_space, *, seed=0, dtype=np.float32, **network):
    """An agent that has seen something and whose actions are far from 0, some of them beyond their bounds."""
    rng = np.random.default_rng(seed)
    with jax.enable_x64(dtype == np.float64):
        network = config.Network(**({"hidden": (8, 8)} | network))
        policy = make_policy(observation_space, action_space, network, jax.random.key(seed), dtype)
        policy = jax.tree.map(
            lambda leaf: jax.numpy.asarray(rng.uniform(0.3, 1.5, leaf.shape) * rng.choice([-1, 1], leaf.shape), dtype),
            policy,
        )
        policy = eqx.tree_at(lambda p: p.normaliser.variance, policy, abs(policy.normaliser.variance))
    return sf.Agent(policy, observation_space, action_space, "Some-v0")


def observations(agent, count):
    """So many of them, one after another, from the space."""
    agent.observation_space.seed(1)
    return [agent.observation_space.sample() for _ in range(count)]


def fed(observed, space, name="observation"):
    """Stacked observations as the file's inputs."""
    if isinstance(space, (spaces.Dict, spaces.Tuple)):
        parts = space.spaces.items() if isinstance(space, spaces.Dict) else enumerate(space.spaces)
        found = {}
        for key, part in parts:
            found |= fed([value[key] for value in observed], part, f"{name}.{key}")
        return found
    return {name: np.stack([np.asarray(value, space.dtype) for value in observed])}


def run_session(file, inputs):
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, inputs), strict=True))


def agree(found, expected):
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    if expected.dtype.kind == "f":
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    else:
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("action", probes.ACTIONS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_every_kind_of_action_is_what_the_agent_does(action, dtype, tmp_path):
    agent = make_agent(NUMBERS, probes.ACTIONS[action], dtype=dtype)
    seen = observations(agent, 50)
    file = sf.export_onnx(agent, tmp_path / "policy.onnx")
    made = run_session(file, fed(seen, NUMBERS))["action"]
    expected = np.stack([agent.act(one) for one in seen])
    agree(made, expected)
    assert len(np.unique(expected.reshape(50, -1), axis=0)) > 1  # or anything constant would pass
    assert all(agent.action_space.contains(one[()] if one.ndim == 0 else one) for one in made)


@pytest.mark.parametrize("observation", [*probes.OBSERVATIONS, "nested"])
def test_every_kind_of_observation_is_encoded_as_the_agent_does(observation, tmp_path):
    space = NESTED if observation == "nested" else probes.OBSERVATIONS[observation]
    agent = make_agent(space, spaces.Box(-9, 9, (2,), np.float64))
    seen = observations(agent, 20)
    made = run_session(sf.export_onnx(agent, tmp_path / "policy.onnx"), fed(seen, space))["action"]
    agree(made, np.stack([agent.act(one) for one in seen]))


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_every_activation(activation, dtype, tmp_path):
    agent = make_agent(NUMBERS, probes.numbers(2), activation=activation, dtype=dtype, normalise=False)
    seen = observations(agent, 20)
    made = run_session(sf.export_onnx(agent, tmp_path / "policy.onnx"), fed(seen, NUMBERS))["mean"]
    assert made.dtype == dtype
    agree(made.astype(np.float32), np.stack([agent.act(one) for one in seen]))


@pytest.mark.parametrize("space", [spaces.Discrete(4, start=2), spaces.MultiDiscrete([2, 3, 4])], ids=["one", "many"])
def test_a_mask_forbids_as_the_agents_does(space, tmp_path):
    agent = make_agent(NUMBERS, space)
    sizes = agent.policy.head.sizes
    rng = np.random.default_rng(0)
    masks = rng.random((60, sum(sizes))) < 0.4
    masks[np.arange(60)[:, None], np.cumsum([0, *sizes[:-1]]) + rng.integers(0, sizes, (60, len(sizes)))] = True
    seen = observations(agent, 60)
    file = sf.export_onnx(agent, tmp_path / "policy.onnx")
    expected = np.stack([agent.act(one, mask) for one, mask in zip(seen, masks, strict=True)])
    agree(run_session(file, fed(seen, NUMBERS) | {"mask": masks})["action"], expected)
    assert (expected != np.stack([agent.act(one) for one in seen])).any()


def test_what_the_action_was_chosen_by_and_the_file_tells_of_itself(tmp_path):
    agent = make_agent(NUMBERS, spaces.Box(-2, 2, (2,), np.float32))
    file = sf.export_onnx(agent, tmp_path / "policy.onnx")
    seen = observations(agent, 3)
    made = run_session(file, fed(seen, NUMBERS))
    distribution = agent.policy(np.stack(seen))
    agree(made["mean"], np.asarray(distribution.mean))
    agree(made["std"], np.exp(np.asarray(agent.policy.log_std)))
    model = onnx.load(file)
    told = {entry.key: entry.value for entry in model.metadata_props}
    assert told["environment"] == "Some-v0"
    assert parse(json.loads(told["observation_space"])) == NUMBERS
    assert parse(json.loads(told["action_space"])) == agent.action_space
    assert model.producer_name == "surefoot"
    assert model.producer_version == sf.__version__


def test_a_number_type_that_no_runtime_takes_is_refused(tmp_path):
    agent = make_agent(spaces.Box(-1, 1, (2,), np.longdouble), spaces.Discrete(2))
    with pytest.raises(sf.UnsupportedSpace, match="observation has the number type float128"):
        sf.export_onnx(agent, tmp_path / "policy.onnx")
    assert not list(tmp_path.iterdir())


def test_the_command_exports_a_run(tmp_path, capsys):
    agent = make_agent(NUMBERS, spaces.Discrete(2))
    artefact.save(agent, tmp_path / "run" / "policy", config.Network(hidden=(8, 8)))
    assert cli.main(["export", str(tmp_path / "run"), "--to", "onnx"]) == 0
    told = capsys.readouterr().out
    file = tmp_path / "run" / "policy" / "policy.onnx"
    assert str(file) in told
    assert "observation" in told
    seen = observations(agent, 3)
    agree(run_session(file, fed(seen, NUMBERS))["action"], np.stack([agent.act(one) for one in seen]))
    assert cli.main(["export", str(tmp_path / "run"), "--to", "onnx", "--out", str(tmp_path / "x.onnx"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["file"] == str(tmp_path / "x.onnx")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["export", "nowhere", "--to", "onnx"], "nowhere holds no policy"),
        (["export", "{run}", "--to", "onnx", "--out", "{run}/no/such/x.onnx"], "cannot be written"),
        (["export", "{run}", "--to", "torch"], "invalid choice: 'torch'"),
        (["export", "{run}"], "--to is missing"),
    ],
)
def test_what_cannot_be_exported_is_one_line(arguments, said, tmp_path, capsys):
    artefact.save(make_agent(NUMBERS, spaces.Discrete(2)), tmp_path / "policy", config.Network(hidden=(8, 8)))
    assert cli.main([part.format(run=tmp_path) for part in arguments]) == 2
    told = capsys.readouterr().err
    assert said in told
    assert told.count("\n") == 1


def test_without_onnx_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)
    with pytest.raises(sf.SettingError, match=r"pip install 'surefoot\[onnx\]'"):
        sf.export_onnx(make_agent(NUMBERS, spaces.Discrete(2)), tmp_path / "policy.onnx")


def test_a_real_environment(tmp_path):
    env = gymnasium.make("HalfCheetah-v5")
    agent = make_agent(env.observation_space, env.action_space)
    observed, _ = env.reset(seed=0)
    made = run_session(sf.export_onnx(agent, tmp_path / "policy.onnx"), {"observation": observed[None]})["action"]
    agree(made[0], agent.act(observed))
    assert env.action_space.contains(made[0])
