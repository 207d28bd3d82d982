"""The artefact: it acts outside the trainer as inside, and nothing broken or foreign is loaded."""

from __future__ import annotations

import json
import os
import pickle
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from gymnasium import spaces

import probes
import surefoot as sf
from probes import ACTIONS, OBSERVATIONS, numbers
from surefoot import config, history
from surefoot.agent import save
from surefoot.policy import make_policy

NETWORK = config.Network(hidden=(8,), activation="elu")
TINY = {"envs": 2, "horizon": 8, "hidden": (8,), "critic_hidden": (8,), "critic_epochs": 1, "progress": False}


def agent_of(observation_space: Any, action_space: Any, seed: int = 0, dtype: Any = np.float32) -> sf.Agent:
    """An agent that heeds what it sees, with a normaliser that has seen something."""
    policy = make_policy(observation_space, action_space, NETWORK, jax.random.key(0), dtype)
    rng = np.random.default_rng(seed)
    policy = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), leaf.dtype), policy)
    policy = eqx.tree_at(lambda p: p.normaliser.variance, policy, jnp.abs(policy.normaliser.variance) + 0.5)
    return sf.Agent(policy, observation_space, action_space, "probes:Zoo")


def drawn(space: spaces.Space, count: int, seed: int) -> list[Any]:
    space.seed(seed)
    return [space.sample() for _ in range(count)]


def stacked(space: spaces.Space, parts: list[Any]) -> Any:
    """Observations as one batch."""
    if isinstance(space, spaces.Dict):
        return {key: stacked(sub, [part[key] for part in parts]) for key, sub in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(stacked(sub, [part[i] for part in parts]) for i, sub in enumerate(space.spaces))
    return np.stack(parts)


def same_bits(one: Any, other: Any) -> bool:
    ones, others = jax.tree.leaves(one), jax.tree.leaves(other)
    return jax.tree.structure(one) == jax.tree.structure(other) and all(
        a.dtype == b.dtype and np.array_equal(np.asarray(a), np.asarray(b)) for a, b in zip(ones, others, strict=True)
    )


def one_line(raised: Any) -> str:
    message = str(raised.value)
    assert message.strip()
    assert "\n" not in message
    return message


# Save, load, act.

KINDS = [
    pytest.param(observation, list(ACTIONS)[number % len(ACTIONS)], id=f"{observation}-{list(ACTIONS)[number % 9]}")
    for number, observation in enumerate(OBSERVATIONS)
]


def test_the_table_of_kinds_has_every_space():
    assert {kind.values[0] for kind in KINDS} == OBSERVATIONS.keys()
    assert {kind.values[1] for kind in KINDS} == ACTIONS.keys()


@pytest.mark.parametrize(("observation", "action"), KINDS)
def test_a_loaded_agent_acts_bit_for_bit_as_the_saved_one(observation, action, tmp_path, seed):
    observation_space, action_space = OBSERVATIONS[observation], ACTIONS[action]
    agent = agent_of(observation_space, action_space, seed % 1000)
    save(agent, tmp_path / "policy", NETWORK)
    loaded = sf.load(tmp_path)
    assert same_bits(loaded.policy, agent.policy)
    assert loaded.observation_space == observation_space
    assert loaded.action_space == action_space
    assert loaded.environment == "probes:Zoo"

    seen = drawn(observation_space, 6, seed)
    batch = stacked(observation_space, seen)
    together = loaded.act(batch)
    assert together.shape == (6, *action_space.shape)
    assert together.dtype == action_space.dtype
    assert np.array_equal(together, agent.act(batch))
    assert all(action_space.contains(one) for one in together)
    alone = loaded.act(seen[0])
    assert alone.shape == action_space.shape
    np.testing.assert_allclose(alone, together[0], rtol=1e-4, atol=1e-5)

    sampled = [one.act(batch, deterministic=False, generator=np.random.default_rng(3)) for one in (agent, loaded)]
    assert np.array_equal(*sampled)
    assert all(action_space.contains(one) for one in sampled[0])


def test_a_policy_keeps_its_number_type(tmp_path, dtype):
    agent = agent_of(numbers(3), ACTIONS["unbounded"], dtype=dtype)
    save(agent, tmp_path, NETWORK)
    loaded = sf.load(tmp_path)
    assert loaded.policy.normaliser.mean.dtype == dtype
    assert same_bits(loaded.policy, agent.policy)
    observation = np.linspace(-1, 1, 3)
    assert np.array_equal(loaded.act(observation), agent.act(observation))


def test_a_policy_of_64_bits_acts_where_jax_has_32(tmp_path):
    observation = np.linspace(-1, 1, 3)
    with jax.enable_x64(True):
        agent = agent_of(numbers(3), ACTIONS["unbounded"], dtype=np.float64)
        save(agent, tmp_path, NETWORK)
        wanted = agent.act(observation)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_allclose(sf.load(tmp_path).act(observation), wanted, rtol=1e-4)
    assert not jax.config.jax_enable_x64


def test_what_is_saved_is_only_tensors_and_json(tmp_path):
    save(agent_of(OBSERVATIONS["dict"], ACTIONS["mixed (2, 2)"]), tmp_path, NETWORK)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["policy.json", "policy.safetensors"]
    json.loads((tmp_path / "policy.json").read_text(), parse_constant=lambda word: pytest.fail(word))
    tensors = safetensors.numpy.load_file(tmp_path / "policy.safetensors")
    assert {"normaliser.mean", "normaliser.variance", "log_std"} <= tensors.keys()


@pytest.mark.long
def test_the_normaliser_of_training_travels_with_the_agent(tmp_path):
    # Observations around 1000 with a spread of 50: without the normaliser nothing is right.
    run = sf.train(probes.Noise, sf.PG(radius=0.1), out=tmp_path, steps=60, evaluation_episodes=3, **TINY)
    loaded = sf.load(run.path)
    normaliser = loaded.policy.normaliser
    assert same_bits(loaded.policy, run.agent.policy)
    assert normaliser.count == run.steps == history.read(run.path).rows[-1]["steps"]
    assert np.abs(normaliser.mean - np.array([1000, -3])).max() < 30
    observation = np.array([[900, -3.01], [1100, -2.99]], np.float32)
    assert same_bits(loaded.policy(observation), run.agent.policy(observation))
    forgetful = eqx.tree_at(lambda p: p.normaliser, loaded.policy, normaliser.identity(np.ones(2, bool)))
    assert np.abs(forgetful(observation).mean - loaded.policy(observation).mean).max() > 1e-3
    assert sf.evaluate(loaded, probes.Noise, episodes=3, seed=0) == run.evaluation


# What acting refuses, and what it heeds.

PLAIN = agent_of(numbers(3), ACTIONS["discrete"])
SCALAR = agent_of(OBSERVATIONS["discrete"], ACTIONS["multidiscrete"])
NESTED = agent_of(OBSERVATIONS["dict"], ACTIONS["box"])
PAIR = agent_of(spaces.Tuple([numbers(1), spaces.Discrete(2)]), ACTIONS["multibinary"])
NEST = {"z": np.zeros(2), "a": 1, "m": {"y": np.zeros(3, int), "b": 0.0}}


@pytest.mark.parametrize(
    ("agent", "observation", "words"),
    [
        (PLAIN, np.zeros(2), ["(3,)", "(2,)"]),
        (PLAIN, np.zeros((5, 2)), ["(3,)", "(5, 2)"]),
        (PLAIN, np.zeros((1, 1, 3)), ["(3,)", "(1, 1, 3)"]),
        (PLAIN, 0.0, ["(3,)", "()"]),
        (PLAIN, [[1, 2, 3], [1, 2]], ["observation", "(3,)"]),
        (PLAIN, ["a", "b", "c"], ["observation"]),
        (PLAIN, None, ["observation"]),
        (PLAIN, {"x": np.zeros(3)}, ["observation"]),
        (SCALAR, np.zeros((2, 2), int), ["()", "(2, 2)"]),
        (SCALAR, "left", ["observation", "left"]),
        (SCALAR, None, ["observation", "None"]),
        (SCALAR, 3, ["observation", "3"]),
        (SCALAR, [0, -3], ["observation", "-3"]),
        (NESTED, np.zeros(4), ["observation", "'z'"]),
        (NESTED, {key: NEST[key] for key in ("z", "a")}, ["observation", "'m'"]),
        (NESTED, {**NEST, "z": np.zeros(3)}, ["observation['z']", "(2,)", "(3,)"]),
        (NESTED, {**NEST, "m": {"y": np.zeros(3)}}, ["observation['m']", "'b'"]),
        (NESTED, {**NEST, "z": np.zeros((4, 2))}, ["observation"]),
        (NESTED, {"z": np.zeros((4, 2)), "a": np.ones(4), "m": {"y": np.zeros((5, 3)), "b": np.zeros(4)}}, ["5", "4"]),
        (PAIR, (np.zeros(1),), ["observation"]),
        (PAIR, (np.zeros((3, 1)), np.zeros(2, int)), ["3", "2"]),
    ],
)
def test_an_observation_that_does_not_fit_its_space_is_refused(agent, observation, words):
    with pytest.raises(sf.SettingError) as raised:
        agent.act(observation)
    line = one_line(raised)
    assert all(word in line for word in words)


@pytest.mark.parametrize(
    ("agent", "observation", "mask"),
    [
        pytest.param(PLAIN, np.zeros(3), np.ones(4, bool), id="too wide"),
        pytest.param(PLAIN, np.zeros(3), np.ones(1, bool), id="too narrow"),
        pytest.param(PLAIN, np.zeros(3), True, id="no array"),
        pytest.param(PLAIN, np.zeros(3), np.ones((2, 3), bool), id="rows for one"),
        pytest.param(PLAIN, np.zeros((4, 3)), np.ones((2, 3), bool), id="too few rows"),
        pytest.param(PLAIN, np.zeros((4, 3)), np.ones((4, 1, 3), bool), id="too many axes"),
        pytest.param(PLAIN, np.zeros(3), np.zeros(3, bool), id="nothing allowed"),
        pytest.param(PLAIN, np.zeros((2, 3)), [[1, 0, 1], [0, 0, 0]], id="nothing allowed in one row"),
        pytest.param(SCALAR, 0, [1, 1, 1, 0, 0, 1, 1, 1, 1], id="nothing allowed in one dimension"),
        pytest.param(NESTED, NEST, np.ones(2, bool), id="a policy without masks"),
    ],
)
def test_a_mask_that_does_not_fit_is_refused(agent, observation, mask):
    with pytest.raises(sf.SettingError, match=r"^mask") as raised:
        agent.act(observation, mask)
    one_line(raised)


def test_masks_leave_the_best_of_what_is_allowed():
    observation = np.linspace(-1, 1, 12).reshape(4, 3)
    order = np.argsort(PLAIN.policy(observation).logits, axis=-1)
    best, second, worst = order[:, 2], order[:, 1], order[:, 0]
    allowed = np.ones((4, 3), bool)
    allowed[np.arange(4), best] = False
    assert np.array_equal(PLAIN.act(observation), best - 1)
    assert np.array_equal(PLAIN.act(observation, allowed), second - 1)
    assert np.array_equal(PLAIN.act(observation, np.eye(3, dtype=np.int8)[worst[0]]), np.full(4, worst[0] - 1))
    assert PLAIN.act(observation[0], np.eye(3)[worst[0]]) == worst[0] - 1
    sampled = PLAIN.act(np.repeat(observation, 50, axis=0), np.repeat(allowed, 50, axis=0), deterministic=False)
    assert (sampled != np.repeat(best, 50) - 1).all()


def test_sampling_repeats_with_the_generator_and_not_without():
    candidates = np.random.default_rng(0).normal(size=(100, 3)).astype(np.float32)
    undecided = candidates[np.argmax(PLAIN.policy(candidates).entropy())]
    observation = np.tile(undecided, (400, 1))
    first, again, other = (
        PLAIN.act(observation, deterministic=False, generator=np.random.default_rng(number)) for number in (1, 1, 2)
    )
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    free = [PLAIN.act(observation, deterministic=False) for _ in range(2)]
    assert not np.array_equal(*free)
    # Each row draws its own action, as often as the policy says: four standard deviations.
    probability = np.asarray(PLAIN.policy(observation[0]).probs())
    share = np.bincount(first + 1, minlength=3) / 400
    assert (np.abs(share - probability) < 4 * np.sqrt(probability * (1 - probability) / 400) + 1e-3).all()
    # One generator goes on; it does not begin again with every call.
    generator = np.random.default_rng(1)
    assert np.array_equal(PLAIN.act(observation, deterministic=False, generator=generator), first)
    assert not np.array_equal(PLAIN.act(observation, deterministic=False, generator=generator), first)


def test_an_observation_may_come_in_any_order_and_number_type():
    shuffled = {"m": {"b": np.float64(0), "y": [0, 0, 0]}, "a": np.int8(1), "z": [0, 0]}
    assert np.array_equal(NESTED.act(shuffled), NESTED.act(NEST))


# Artefacts that are broken.


def raw(dtype: str, shape: list[int], size: int, name: str = "log_std") -> bytes:
    """A safetensors file with one tensor of a type that NumPy may not have."""
    header = json.dumps({name: {"dtype": dtype, "shape": shape, "data_offsets": [0, size]}}).encode()
    return len(header).to_bytes(8, "little") + header + bytes(size)


class Trap:
    """What opens it as a pickle leaves a file behind."""

    def __init__(self, file: Path):
        self._file = file

    def __reduce__(self):
        return os.mkdir, (str(self._file),)


def without(name: str):
    return lambda tensors: {key: value for key, value in tensors.items() if key != name}


def changed(change: Any):
    return lambda tensors: {**tensors, "normaliser.mean": change(tensors["normaliser.mean"])}


def filled(value: float):
    return changed(lambda x: np.concatenate([x[:-1], np.array([value], x.dtype)]))


TENSORS = {
    "a tensor is missing": (without("normaliser.variance"), ["'normaliser.variance'", "missing"]),
    "log_std is missing": (without("log_std"), ["'log_std'", "missing"]),
    "a tensor too many": (lambda tensors: {**tensors, "critic": np.zeros(1)}, ["'critic'"]),
    "no tensors": (lambda tensors: {}, ["missing"]),
    "too short": (changed(lambda x: x[:-1]), ["'normaliser.mean'", "[2]", "[3]"]),
    "turned": (changed(lambda x: x[None]), ["'normaliser.mean'", "[1, 3]"]),
    "float64": (changed(lambda x: x.astype(np.float64)), ["'normaliser.mean'", "64", "float32"]),
    "int32": (changed(lambda x: x.astype(np.int32)), ["'normaliser.mean'", "32"]),
    "nan": (filled(np.nan), ["'normaliser.mean'", "finite"]),
    "inf": (filled(np.inf), ["'normaliser.mean'", "finite"]),
    "bfloat16": (lambda tensors: raw("BF16", [2], 4), ["policy.safetensors", "BF16"]),
    "eight bits": (lambda tensors: raw("F8_E4M3", [2], 2), ["policy.safetensors", "F8_E4M3"]),
    "an unknown type": (lambda tensors: raw("Q7", [2], 4), ["policy"]),
    "cut short": (lambda tensors: safetensors.numpy.save(tensors)[:-5], ["policy"]),
    "cut in its header": (lambda tensors: safetensors.numpy.save(tensors)[:20], ["policy"]),
    "empty": (lambda tensors: b"", ["policy"]),
    "an endless header": (lambda tensors: (2**60).to_bytes(8, "little") + b"{}", ["policy"]),
    "an archive": (lambda tensors: b"PK\x03\x04" + bytes(100), ["policy"]),
}


@pytest.fixture
def artefact(tmp_path) -> Path:
    """The folder of an artefact to spoil."""
    save(agent_of(numbers(3), ACTIONS["box"]), tmp_path / "policy", NETWORK)
    return tmp_path / "policy"


def respell(folder: Path, blob: bytes | None = None, **entries: Any) -> None:
    """Write the description anew, with other entries (None takes one out), and the tensors with a size that fits."""
    description = json.loads((folder / "policy.json").read_text())
    if blob is not None:
        (folder / "policy.safetensors").write_bytes(blob)
        description["tensor_bytes"] = len(blob)
    description = {key: value for key, value in {**description, **entries}.items() if value is not None}
    (folder / "policy.json").write_text(json.dumps(description))


def refusal(folder: Path) -> str:
    with pytest.raises(sf.RunError) as raised:
        sf.load(folder)
    assert type(raised.value) is sf.RunError
    return one_line(raised)


@pytest.mark.parametrize("name", TENSORS)
def test_tensors_that_do_not_fit_are_refused_by_name(name, artefact):
    spoil, words = TENSORS[name]
    spoiled = spoil(safetensors.numpy.load_file(artefact / "policy.safetensors"))
    blob = spoiled if isinstance(spoiled, bytes) else safetensors.numpy.save(spoiled)
    respell(artefact, blob)
    line = refusal(artefact)
    assert str(artefact) in line
    assert all(word in line for word in words)


def test_a_bit_that_flipped_is_seen_although_everything_fits(artefact):
    blob = bytearray((artefact / "policy.safetensors").read_bytes())
    blob[-1] ^= 1
    (artefact / "policy.safetensors").write_bytes(blob)
    assert "policy.safetensors is not as it was written" in refusal(artefact)


def test_a_description_that_was_changed_is_seen_although_everything_fits(artefact):
    respell(artefact, environment="Other-v0")
    assert "policy.json is not as it was written" in refusal(artefact)


def test_a_torn_pair_of_files_is_recognised(artefact):
    blob = (artefact / "policy.safetensors").read_bytes()
    (artefact / "policy.safetensors").write_bytes(blob[:-4])
    assert str(len(blob)) in refusal(artefact)


def test_a_pickle_in_the_place_of_the_tensors_is_refused_unopened(artefact, tmp_path):
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        respell(artefact, pickle.dumps(Trap(tmp_path / "sprung"), protocol))
        assert "policy" in refusal(artefact)
    assert not (tmp_path / "sprung").exists()
    pickle.loads((artefact / "policy.safetensors").read_bytes())
    assert (tmp_path / "sprung").exists()


KEYS = (
    "format_version",
    "environment",
    "observation_space",
    "action_space",
    "network",
    "dtype",
    "tensor_bytes",
    "sha256",
)


@pytest.mark.parametrize("key", KEYS)
def test_a_description_without_a_key_is_refused_by_the_key(key, artefact):
    respell(artefact, **{key: None})
    assert f"'{key}'" in refusal(artefact)


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ({"format_version": 3}, ["format_version", "3"]),
        ({"format_version": "1"}, ["format_version", "'1'"]),
        ({"format_version": [1]}, ["format_version"]),
        ({"dtype": "float16"}, ["dtype", "float16"]),
        ({"dtype": ["float32"]}, ["dtype"]),
        ({"dtype": "float64"}, ["32", "float64"]),
        ({"tensor_bytes": "many"}, ["policy.safetensors", "many"]),
        ({"network": {"hidden": [9]}}, ["'network.weights.0'", "[3, 8]", "[3, 9]"]),
        ({"network": {"hidden": [8, 8]}}, ["'network."]),
        ({"network": {"hidden": [0]}}, ["hidden"]),
        ({"network": {"hidden": [10_000, 10_000]}}, ["network.hidden", "bytes"]),
        ({"network": {"hidden": [8], "width": 3}}, ["width"]),
        ({"network": {"hidden": [8], "activation": "exec"}}, ["activation", "exec"]),
        ({"network": [8]}, ["policy"]),
        ({"network": "wide"}, ["policy"]),
        ({"observation_space": {"type": "Discrete", "n": 4, "start": 0, "dtype": "int64"}}, ["'n"]),
        ({"observation_space": {"type": "Text"}}, ["Text"]),
        ({"observation_space": 3}, ["3"]),
        ({"action_space": {"type": "Discrete", "n": 2, "start": 0, "dtype": "int64"}}, ["'log_std'"]),
        ({"action_space": {"type": "Dict", "spaces": {}}}, ["action space"]),
        ({"action_space": {"type": "Box", "low": [1], "high": [0], "shape": [1], "dtype": "float32"}}, ["policy"]),
    ],
    ids=repr,
)
def test_a_description_that_does_not_fit_is_refused_by_the_key(entries, words, artefact):
    respell(artefact, **entries)
    line = refusal(artefact)
    assert str(artefact) in line
    assert all(word in line for word in words)


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"3", b"null", b'"policy"', b"\xff\xfe\x00", b"not json"], ids=repr)
def test_a_description_that_is_no_json_object_is_refused(text, artefact):
    (artefact / "policy.json").write_bytes(text)
    assert str(artefact.parent) in refusal(artefact)


@pytest.mark.parametrize("file", ["policy.json", "policy.safetensors"])
def test_half_an_artefact_is_refused(file, artefact):
    (artefact / file).unlink()
    assert file in refusal(artefact)


def test_where_there_is_no_artefact_the_path_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path, tmp_path / "nowhere", tmp_path / "file"):
        assert str(path) in refusal(path)


# Evaluation.

SHORT = agent_of(numbers(1), spaces.Discrete(2))


@pytest.mark.parametrize("episodes", [1, 3, 20, 23, 45])
def test_evaluation_counts_whole_episodes_exactly(episodes):
    # Every environment plays episodes of 2, 5 and 9 steps in turn, and up to twenty are played side by side.
    lengths = np.repeat([2, 5, 9], 20)[:episodes]
    result = sf.evaluate(
        agent_of(numbers(1), spaces.Discrete(2)), partial(probes.Lengths, (2, 5, 9)), episodes=episodes
    )
    assert result.keys() == {"return", "length", "cut"}
    assert result["cut"] == 0
    assert result["return"].keys() == {"mean", "std", "episodes"}
    assert result["length"].keys() == {"mean"}
    assert result["return"]["episodes"] == episodes
    np.testing.assert_allclose(result["return"]["mean"], lengths.mean(), rtol=1e-12)
    np.testing.assert_allclose(result["return"]["std"], lengths.std(), rtol=1e-12)
    np.testing.assert_allclose(result["length"]["mean"], lengths.mean(), rtol=1e-12)


def test_evaluation_does_not_favour_short_episodes():
    # Half of them last 60 steps. Whoever takes the first twenty that end finds next to none of those.
    environment = partial(probes.Lengths, (1, 60), drawn=True)
    means = [sf.evaluate(SHORT, environment, episodes=20, seed=seed)["length"]["mean"] for seed in range(5)]
    long = (np.mean(means) - 1) / 59
    assert 0.3 < long < 0.7
    assert len(set(means)) > 1


def test_evaluation_repeats_under_its_seed():
    agent = agent_of(numbers(2), spaces.Box(-1.0, 1.0, (1,), np.float32))
    for deterministic in (True, False):
        one, again, other = (
            sf.evaluate(agent, probes.Noise, episodes=2, seed=seed, deterministic=deterministic) for seed in (4, 4, 5)
        )
        assert one == again
        assert one["return"] != other["return"]


@pytest.mark.parametrize("episodes", [0, -1, 1.5, "3", None])
def test_a_number_of_episodes_that_is_none_is_refused(episodes):
    with pytest.raises(sf.SettingError, match=r"^episodes must be ") as raised:
        sf.evaluate(SHORT, partial(probes.Lengths, (2,)), episodes=episodes)
    one_line(raised)


@pytest.mark.parametrize(
    "agent",
    [
        pytest.param(agent_of(numbers(2), spaces.Discrete(2)), id="other observations"),
        pytest.param(agent_of(numbers(1), ACTIONS["box"]), id="other actions"),
        pytest.param(agent_of(numbers(1), spaces.Discrete(9)), id="more actions"),
    ],
)
def test_an_agent_of_other_spaces_is_refused_an_evaluation(agent):
    with pytest.raises(sf.SettingError) as raised:
        sf.evaluate(agent, partial(probes.Lengths, (2,)), episodes=1)
    assert "space" in one_line(raised)
