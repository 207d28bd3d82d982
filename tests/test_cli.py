"""The command: what a user types, what comes back, and one clear line for what cannot be done."""

import dataclasses
import json
import subprocess
import sys

import pytest

from surefoot import cli, config, history

TINY = [
    *("--envs", "2", "--horizon", "8", "--steps", "32", "--hidden", "8", "--critic-hidden", "8"),
    *("--critic-epochs", "1", "--evaluation-episodes", "2"),
]


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("cli") / "run"
    assert cli.main(["train", "CartPole-v1", *TINY, "--rule", "npg", "--radius", "0.02", "--out", str(out)]) == 0
    return out


def test_train_json_is_one_object_on_standard_output_and_nothing_else(tmp_path, capfd):
    assert cli.main(["train", "CartPole-v1", *TINY, "--json", "--out", str(tmp_path / "run")]) == 0
    told = json.loads(capfd.readouterr().out)
    assert told["run"] == str(tmp_path / "run")
    assert told["steps"] >= 32
    assert told["updates"] == len(history.read(tmp_path / "run").rows)
    assert set(told["return"]) == {"mean", "std", "episodes"}
    assert told["return"]["episodes"] == 2


def test_a_run_leaves_everything_that_is_promised(run_folder):
    files = {str(path.relative_to(run_folder)) for path in run_folder.rglob("*") if path.is_file()}
    checkpoints = {name for name in files if name.startswith("checkpoints/")}
    assert {name.rpartition(".")[2] for name in checkpoints} == {"json", "safetensors"}
    assert files - checkpoints == {
        "config.json",
        "metrics.jsonl",
        "evaluation.json",
        "learning_curve.png",
        "report.html",
        "policy/policy.json",
        "policy/policy.safetensors",
    }
    assert (run_folder / "learning_curve.png").read_bytes().startswith(b"\x89PNG")
    told = history.read(run_folder).config
    assert told["rule"] == "npg"
    assert told["rule_settings"]["radius"] == 0.02
    assert told["critic_hidden"] == [8]
    assert set(config.run_options()) <= set(told)
    assert set(told["versions"]) >= {"surefoot", "python", "jax", "numpy", "gymnasium"}


def test_evaluate_plays_what_was_trained(run_folder, capsys):
    assert cli.main(["evaluate", str(run_folder), "--episodes", "3", "--json"]) == 0
    first = json.loads(capsys.readouterr().out)
    assert first["return"]["episodes"] == 3
    assert first["return"]["mean"] == first["length"]["mean"] > 0
    assert cli.main(["evaluate", str(run_folder), "--episodes", "3"]) == 0
    assert f"{first['return']['mean']:.1f}" in capsys.readouterr().out


@pytest.mark.long
def test_evaluate_films_an_episode(run_folder, tmp_path):
    film = tmp_path / "episode.gif"
    assert cli.main(["evaluate", str(run_folder), "--episodes", "1", "--video", str(film)]) == 0
    assert film.read_bytes().startswith(b"GIF8")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("", "surefoot train CartPole-v1"),
        ("train", "surefoot train CartPole-v1"),
        ("trian CartPole-v1", "train"),
        ("train CartPol-v1", "'CartPole-v1'"),
        ("train no_such_module:make", "package.module:callable"),
        ("train CartPole-v1 --stpes 5", "'--steps'"),
        ("train CartPole-v1 --steps many", "a whole number"),
        ("train CartPole-v1 --steps 0", "at least 1"),
        ("train CartPole-v1 --steps 1.5", "a whole number"),
        ("train CartPole-v1 --radius -0.1", "radius must be a number, above 0"),
        ("train CartPole-v1 --radius nan", "radius"),
        ("train CartPole-v1 --discount 1", "discount must be a number, at least 0 and below 1"),
        ("train CartPole-v1 --seed -1", "seed"),
        ("train CartPole-v1 --rule tropo", "invalid choice"),
        ("train CartPole-v1 --rule pg --rule.damping 0.1", "--rule.damping is no option of the rule pg"),
        ("train CartPole-v1 --rule.subsample 0.2 --rule.damping 0", "damping must be above 0"),
        ("train CartPole-v1 --hidden 64 0", "hidden must be a whole number, at least 1"),
        ("evaluate", "RUN is missing"),
        ("evaluate nowhere/at-all", "nowhere/at-all"),
        ("evaluate . --episodes 0", "episodes"),
    ],
)
def test_bad_input_is_one_line_that_says_what_is_right(line, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(line.split()) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert said in told.err
    assert len(told.err.strip().splitlines()) == 1
    assert "Traceback" not in told.err
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_holds_a_run_is_refused_and_left_alone(run_folder, capsys):
    before = {path: path.read_bytes() for path in run_folder.rglob("*") if path.is_file()}
    assert cli.main(["train", "CartPole-v1", *TINY, "--out", str(run_folder)]) == 2
    assert "already holds" in capsys.readouterr().err
    assert before == {path: path.read_bytes() for path in run_folder.rglob("*") if path.is_file()}


def test_an_environment_of_ones_own_is_evaluated_only_when_allowed(tmp_path, capsys):
    own = "gymnasium.envs.classic_control:CartPoleEnv"
    out = str(tmp_path / "run")
    assert cli.main(["train", own, *TINY, "--out", out]) == 0
    capsys.readouterr()
    assert cli.main(["evaluate", out, "--episodes", "1"]) == 2
    assert "--allow-env" in capsys.readouterr().err
    assert cli.main(["evaluate", out, "--episodes", "1", "--allow-env"]) == 0


def test_runs_without_a_folder_get_one_each(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        assert cli.main(["train", "CartPole-v1", *TINY]) == 0
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {"CartPole-v1-trpo-s0", "CartPole-v1-trpo-s0-2"}
    assert "report.html" in capsys.readouterr().out


@pytest.mark.parametrize("option", ["", "--json"])
def test_a_reader_that_leaves_early_gets_no_traceback(run_folder, option):
    command = f"{sys.executable} -m surefoot.cli doctor {run_folder} {option} | true; echo ${{PIPESTATUS[0]}}"
    told = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert told.stderr == ""
    assert int(told.stdout) in (0, 1, 141)


def test_every_setting_is_in_the_help(capsys):
    assert cli.main(["train", "--help"]) == 0
    told = capsys.readouterr().out
    for name in config.run_options():
        assert f"--{name.replace('_', '-')}" in told
    for rule in config.RULES.values():
        for item in dataclasses.fields(rule):
            assert ("--radius" if item.name == "radius" else f"--rule.{item.name}") in told


def test_the_installed_command_prints_help_and_version():
    for option, said in (("--help", "train"), ("--version", "surefoot 0.")):
        done = subprocess.run(
            [sys.executable, "-m", "surefoot.cli", option], capture_output=True, text=True, check=True
        )
        assert said in done.stdout
