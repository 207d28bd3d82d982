"""A run begun from a config.json: the same bits, and unknown or illegal settings named."""

import json

import pytest

import surefoot as sf
from surefoot import cli, history
from surefoot.errors import SettingError
from surefoot.recipe import Recipe, read_recipe

TIMES = {"seconds", "collect_seconds", "update_seconds", "certify_seconds", "critic_seconds"}


def written(tmp_path, content):
    file = tmp_path / "config.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    return file


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """A run with settings of every kind that are not the defaults."""
    out = tmp_path_factory.mktemp("recipe") / "first"
    settings = ["--steps", "500", "--envs", "8", "--horizon", "16", "--hidden", "8", "--critic-hidden", "8"]
    settings += ["--critic-epochs", "1", "--seed", "7", "--evaluation-episodes", "2", "--holdout", "0.25"]
    settings += ["--rule", "npg", "--radius", "0.02", "--rule.damping", "0.05", "--no-normalise"]
    assert cli.main(["train", "CartPole-v1", *settings, "--out", str(out), "--json"]) == 0
    return out


def told(run):
    rows = [{key: value for key, value in row.items() if key not in TIMES} for row in history.read(run).rows]
    return rows, (run / "policy" / "policy.safetensors").read_bytes(), (run / "evaluation.json").read_bytes()


def test_a_run_is_reproduced_from_its_config_bit_for_bit(first, tmp_path, capsys):
    assert cli.main(["train", "--config", str(first / "config.json"), "--out", str(tmp_path / "again"), "--json"]) == 0
    assert told(tmp_path / "again") == told(first)
    begun = [history.read(run).config for run in (first, tmp_path / "again")]
    assert begun[0].pop("id") != begun[1].pop("id")
    assert begun[0] == begun[1]
    assert "differ" not in capsys.readouterr().err


def test_options_stand_before_the_file_and_other_versions_are_told(first, tmp_path, capsys):
    content = json.loads((first / "config.json").read_text())
    content["versions"]["jax"] = "0.0.1"
    file = written(tmp_path, content)
    out = tmp_path / "other"
    assert (
        cli.main(["train", "--config", str(file), "--seed", "8", "--radius", "0.03", "--out", str(out), "--json"]) == 0
    )
    said = capsys.readouterr().err
    assert "the same bits are not to be expected" in said
    assert "jax 0.0.1, now" in said
    begun = history.read(out).config
    assert begun["seed"] == 8
    assert begun["rule_settings"] == content["rule_settings"] | {"radius": 0.03}
    assert {key: begun[key] for key in ("envs", "holdout", "normalise")} == {
        "envs": 8,
        "holdout": 0.25,
        "normalise": False,
    }


def test_what_a_file_does_not_say_is_left_to_the_defaults(tmp_path):
    recipe = read_recipe(written(tmp_path, {"steps": 100, "rule": "ppo", "rule_settings": {"clip": 0.1}}))
    assert recipe == Recipe(None, "ppo", {"clip": 0.1}, {"steps": 100})
    assert read_recipe(written(tmp_path, {})) == Recipe()
    assert read_recipe(tmp_path) == Recipe()  # a run's folder


REFUSED = {
    "unknown": ({"horizn": 8}, "unknown setting 'horizn' (did you mean 'horizon'"),
    "unknown to the rule": (
        {"rule": "trpo", "rule_settings": {"radios": 1}},
        "unknown setting 'radios' of the rule trpo",
    ),
    "a group's name": ({"collection": {}}, "unknown setting 'collection'"),
    "illegal": ({"envs": 0}, "envs must be a whole number, at least 1"),
    "another type": ({"envs": "8"}, "envs must be a whole number"),
    "illegal in the rule": ({"rule": "trpo", "rule_settings": {"radius": -1}}, "radius must be a number, above 0"),
    "illegal together": ({"envs": 2, "guard": True}, "guard needs at least 8 environments"),
    "no rule": ({"rule": "trop"}, "did you mean 'trpo'"),
    "rule of another type": ({"rule": ["trpo"]}, "rule must be one of"),
    "settings of no rule": ({"rule_settings": {"radius": 1}}, "no rule that they are of"),
    "settings that are none": ({"rule": "trpo", "rule_settings": [1]}, "rule_settings must be a JSON object"),
    "environment of another type": ({"environment": 3}, "environment must be a name"),
    "versions that are none": ({"versions": "1"}, "versions must be a JSON object"),
    "a list": ("[]", "a JSON object is wanted, but a list came"),
    "no JSON": ("{", "cannot be read"),
    "deep": ("[" * 100_000, "cannot be read"),
    "no text": ("\udc80", "cannot be read"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_wrong_in_a_file_is_named_in_one_line(name, tmp_path):
    content, said = REFUSED[name]
    file = tmp_path / "config.json"
    text = content if isinstance(content, str) else json.dumps(content)
    file.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(SettingError) as raised:
        read_recipe(file)
    assert str(raised.value).startswith(f"config: {file}")
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "ENV is missing"),
        (["--config", "{file}"], "ENV is missing"),
        (["--config", "nowhere.json"], "nowhere.json cannot be read"),
        (["CartPole-v1", "--config", "{file}", "--rule", "ppo", "--rule.damping", "1"], "no option of the rule ppo"),
    ],
)
def test_what_the_command_cannot_begin_with_is_one_line(arguments, said, tmp_path, capsys):
    file = written(tmp_path, {"rule": "trpo", "rule_settings": {"damping": 0.2}})
    assert cli.main(["train", *(part.format(file=file) for part in arguments)]) == 2
    line = capsys.readouterr().err
    assert said in line
    assert line.count("\n") == 1


def test_a_module_that_a_file_names_is_not_imported_unasked(tmp_path, monkeypatch, capsys):
    (tmp_path / "planted.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    monkeypatch.syspath_prepend(tmp_path)
    file = written(tmp_path, {"environment": "planted:make"})
    assert cli.main(["train", "--config", str(file)]) == 2
    assert "add --allow-env if it is yours" in capsys.readouterr().err
    assert not (tmp_path / "ran").exists()
    assert cli.main(["train", "--config", str(file), "--allow-env"]) == 2  # allowed, it runs, and makes no environment
    assert (tmp_path / "ran").exists()


def test_python_reads_the_same_file(first):
    recipe = read_recipe(first)
    assert recipe.environment == "CartPole-v1"
    assert sf.NPG(**recipe.rule_settings).settings() == sf.NPG(radius=0.02, damping=0.05).settings()
