"""What fuzzing found (tests/test_fuzz.py), each as a case of its own: an error of one line in place of a traceback."""

from __future__ import annotations

import hashlib
import json
from decimal import Decimal

import numpy as np
import pytest
from gymnasium import spaces

import histories
import surefoot as sf
from surefoot import checkpoint, cli, config, history
from surefoot.errors import ModelError, RunError, SettingError, UnsupportedSpace
from surefoot.report.curve import learning_curve
from surefoot.spaces import make_encoder, make_head, parse
from surefoot.tabular import MDP

MODEL = {"transition": np.ones((1, 2, 1)), "reward": np.zeros((1, 2)), "discount": 0.5, "start": 0}
BOX = {"type": "Box", "low": [0.0], "high": [1.0], "shape": [1], "dtype": "float32"}


def certify(policy):
    return sf.certify(policy, [[0.5, 0.5]], MDP(**MODEL))


REFUSED = {  # what is asked, the error, and a word of it
    "an array as a setting": (lambda: config.make_run(steps=np.arange(9).reshape(3, 3)), SettingError, "steps"),
    "an array as a choice": (lambda: config.make_run(activation=np.zeros(2)), SettingError, "activation"),
    "one number in an array": (lambda: config.make_run(steps=np.array([5])), SettingError, "steps"),
    "bytes as a number": (lambda: config.make_run(steps=b"5"), SettingError, "b'5'"),
    "NumPy's truth as a number": (lambda: config.make_run(steps=np.True_), SettingError, "steps"),
    "a decimal that is no number": (lambda: config.make_run(steps=Decimal("NaN")), SettingError, "steps"),
    "a number of 5000 digits": (lambda: config.make_run(steps=10**5000), SettingError, "cannot be shown"),
    "a text of many lines": (lambda: config.make_run(activation="a\nb" * 500), SettingError, "…"),
    "a billion units": (lambda: config.make_run(hidden=(10**9,)), SettingError, "at most 65536"),
    "a hundred layers": (lambda: config.make_run(critic_hidden=(1,) * 100), SettingError, "at most 64"),
    "ten billion weights": (lambda: config.make_run(hidden=(65536,) * 3), SettingError, "weights"),
    "a batch beyond every index": (lambda: config.make_run(envs=65536, horizon=10**7), SettingError, "shorten"),
    "a complex policy": (lambda: certify([[1j, 1]]), ModelError, "numbers"),
    "dates for a policy": (lambda: certify(np.array([["2020-01-01"] * 2], "M8[D]")), ModelError, "numbers"),
    "an enormous policy": (lambda: certify(10**400), ModelError, "numbers"),
    "an array for a discount": (lambda: MDP(**MODEL | {"discount": np.ones((2, 2))}), ModelError, "discount"),
    "an enormous discount": (lambda: MDP(**MODEL | {"discount": 10**400}), ModelError, "discount"),
    "an array for a horizon": (lambda: MDP(**MODEL | {"horizon": np.ones((2, 2))}), ModelError, "horizon"),
    "an endless horizon": (lambda: MDP(**MODEL | {"horizon": 10**12}), ModelError, "at most 134217728"),
    "bounds beyond the type": (lambda: parse(BOX | {"high": 1e308}), UnsupportedSpace, "overflow"),
    "a space of a billion bits": (lambda: parse({"type": "MultiBinary", "n": 10**9}), UnsupportedSpace, "more than"),
    "a space of a billion bits, in two axes": (
        lambda: parse({"type": "MultiBinary", "n": [10**5, 10**4]}),
        UnsupportedSpace,
        "more than",
    ),
    "a choice beyond 32 bits": (
        lambda: make_head(spaces.MultiDiscrete([2, 3], start=[2**31 - 1, 0])),
        UnsupportedSpace,
        "beyond 32 bits",
    ),
    "an observation below 32 bits": (
        lambda: make_encoder(spaces.Discrete(2, start=-(2**31) - 1)),
        UnsupportedSpace,
        "beyond 32 bits",
    ),
    "a space described at length": (lambda: parse({"type": "x" * 10_000}), UnsupportedSpace, "..."),
    "a name too long for a file": (lambda: sf.load("a" * 300), RunError, "too long"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_was_found_is_refused_in_one_line(case):
    asked, kind, word = REFUSED[case]
    with pytest.raises(kind) as raised:
        asked()
    message = str(raised.value)
    assert word in message
    assert len(message.splitlines()) == 1
    assert len(message) < 700


ROWS = {  # a metric that was never written so
    "beyond every float": ("kl", 10**299 * 10),
    "infinite": ("return_mean", "inf"),
    "enormous": ("steps", 1e308),
    "next to nothing": ("update", 5e-324),
    "a word": ("kl", "word"),
    "a list": ("kl", [1]),
    "deep": ("kl", json.loads("[" * 70 + "]" * 70)),
}


@pytest.mark.parametrize("case", ROWS)
def test_a_metric_that_was_never_written_so_is_told_or_left_out(case, tmp_path, capsys):
    key, value = ROWS[case]
    rows = [row | {key: value} for row in histories.healthy_rows()]
    run = histories.write_run(tmp_path / "run", rows)
    for command in ("doctor", "report"):
        code = cli.main([command, str(run)])
        told = capsys.readouterr().err
        assert code in (0, 1, 2)
        assert len(told.splitlines()) == (code == 2)


CONFIGURATIONS = {  # of runs that can be told of all the same: settings, evaluation
    "no confidence but a word": ({"confidence": "often"}, histories.EVALUATION),
    "hardly any confidence": ({"confidence": 5e-324}, histories.EVALUATION),
    "nearly every confidence": ({"confidence": 0.9999999999999999}, histories.EVALUATION),
    "no confidence but a list": ({"confidence": [0.95]}, histories.EVALUATION),
    "a list for repeatable": ({}, histories.EVALUATION | {"repeatable": []}),
    "a return without a mean": ({}, {"return": {"std": 9.0, "episodes": 20}, "repeatable": True}),
    "a formula that is none": ({"environment": "$\\frac{$"}, histories.EVALUATION),
    "a sign that no font has": ({"environment": "\0\u4e00"}, histories.EVALUATION),
}


@pytest.mark.parametrize("case", CONFIGURATIONS)
def test_a_run_with_odd_settings_is_told_of_all_the_same(case, tmp_path):
    config, evaluation = CONFIGURATIONS[case]
    run = histories.write_run(tmp_path / "run", config=config, evaluation=evaluation)
    assert cli.main(["doctor", str(run)]) == 0
    assert cli.main(["report", str(run)]) == 0
    if "environment" in config:
        learning_curve(run)


@pytest.mark.parametrize("mark", [b"\xef\xbb\xbf", b" \r\n"])
def test_files_that_an_editor_saved_are_read(mark, tmp_path):
    run = histories.write_run(tmp_path / "run")
    rows = history.read(run).rows
    for file in ("config.json", "evaluation.json"):
        (run / file).write_bytes(mark + (run / file).read_bytes())
    metrics = run / "metrics.jsonl"
    metrics.write_bytes(metrics.read_bytes().replace(b"\n", b"\r\n") + b"\r\n")
    assert history.read(run).rows == rows


def test_the_action_of_a_scalar_box_is_a_scalar():
    space = spaces.Box(-2, 4, ())
    _, action_map = make_head(space)
    assert action_map(np.array([0.0])) == 1
    assert action_map(np.array([0.0])).shape == ()
    assert action_map(np.array([[1.0], [-1.0]])).tolist() == [4, -2]


@pytest.mark.parametrize("argv", [["doctor", "runs", ""], ["", ""], ["report", "runs", "--\x1b[2J"]])
def test_a_command_line_of_nothing_much_is_one_line(argv, capsys):
    assert cli.main(argv) == 2
    told = capsys.readouterr().err
    assert len(told.splitlines()) == 1
    assert told.strip().isprintable()


def test_too_little_memory_is_one_line(monkeypatch, capsys):
    def spent(*_, **__):
        raise MemoryError

    monkeypatch.setattr("surefoot.doctor.examine", spent)
    monkeypatch.setattr("surefoot.history.read", spent)
    assert cli.main(["doctor", "runs"]) == 2
    assert "memory" in capsys.readouterr().err


def test_rewards_beyond_what_float64_can_add_up_are_refused():
    for horizon in (None, 3):
        mdp = sf.tabular.MDP(np.ones((1, 2, 1)), np.array([[1.7e308, 1.7e308]]), 0.9, 0, horizon)
        with pytest.raises(sf.ModelError, match="reward: values leave float64"):
            sf.tabular.evaluate(mdp, mdp.uniform())


@pytest.mark.parametrize("part", ["indices", "indptr", "shape"])
def test_a_sparse_matrix_whose_places_are_no_whole_numbers_is_refused(part, tmp_path):
    sf.tabular.save_mdp(sf.tabular.load("FrozenLake-v1"), tmp_path / "mdp.npz")
    with np.load(tmp_path / "mdp.npz") as opened:
        held = dict(opened)
    held[f"transition_{part}"] = held[f"transition_{part}"] * (1 + 0j)
    np.savez(tmp_path / "mdp.npz", **held)
    with pytest.raises(sf.ModelError, match=f"transition_{part} must hold whole numbers"):
        sf.tabular.load(str(tmp_path / "mdp.npz"))


def test_a_picture_whose_axes_no_number_can_hold_is_told(monkeypatch, tmp_path):
    from matplotlib.figure import Figure

    def fail(*_, **__):
        raise ValueError("arange: cannot compute length")

    monkeypatch.setattr(Figure, "savefig", fail)
    with pytest.raises(sf.RunError, match="cannot be drawn from these metrics: arange"):
        learning_curve(histories.write_run(tmp_path))


def test_a_checkpoint_whose_tensors_have_a_type_of_two_lines_is_told_in_one(tmp_path):
    checkpoint.write(tmp_path, "run", 1, {"a": np.zeros(3)}, {}, [])
    tensors = next((tmp_path / "checkpoints").glob("*.safetensors"))
    changed = tensors.read_bytes().replace(b'"F64"', b'"\\nx"')
    tensors.write_bytes(changed)
    described = json.loads(tensors.with_suffix(".json").read_text())
    del described["digest"]
    described |= {"bytes": len(changed), "sha256": hashlib.sha256(changed).hexdigest()}
    tensors.with_suffix(".json").write_bytes(checkpoint._sealed(described))
    with pytest.raises(RunError) as raised:
        checkpoint.read(tensors.with_suffix(".json"))
    assert "no checkpoint that can be read" in str(raised.value)
    assert "\n" not in str(raised.value)
