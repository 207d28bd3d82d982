"""Whatever stands in a file, reading it runs none of it, and writes nothing outside the run's folder."""

from __future__ import annotations

import ast
import functools
import html.parser
import json
import os
import pickle
import shutil
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import fuzzing
import histories
import surefoot as sf
from surefoot import cli, compilation, training
from surefoot.errors import SurefootError
from surefoot.reading import parse_json
from surefoot.tabular import files
from tiny import TINY

SOURCE = Path(sf.__file__).parent


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> Path:
    """A finished run, and finite MDPs with policies."""
    folder = tmp_path_factory.mktemp("sound")
    sf.train("CartPole-v1", "pg", out=folder / "run", steps=32, evaluate_every=16, **TINY | {"source": "gymnasium"})
    mdp = sf.tabular.load("three-decisions")
    plain = {"transition": mdp.transition.tolist(), "reward": mdp.reward.tolist(), "start": mdp.start.tolist()}
    (folder / "mdp.json").write_text(json.dumps(plain | {"discount": mdp.discount, "horizon": mdp.horizon}))
    sf.tabular.save_mdp(mdp, folder / "mdp.npz")
    for name in ("old.npy", "new.npy"):
        np.save(folder / name, mdp.uniform())
    return folder


@pytest.fixture
def given(sound, tmp_path, monkeypatch) -> Path:
    """A copy of these that may be spoiled. A resume ends where its training would begin."""

    def reached(*_: Any, **__: Any) -> None:
        raise SurefootError("reached the training")

    monkeypatch.setattr(training, "train", reached)
    monkeypatch.setattr(training, "_train", reached)
    monkeypatch.setattr(cli, "build_parser", functools.cache(cli.build_parser))  # half of what a command takes
    shutil.copytree(sound, tmp_path / "given")
    return tmp_path / "given"


class Bomb:
    """Leaves a mark where it is unpickled."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


def bombs(mark: Path) -> dict[str, bytes]:
    """Files that run code in a reader that lets them."""
    bomb = Bomb(mark)
    return {
        "pickle": pickle.dumps(bomb),
        "text pickle": pickle.dumps(bomb, protocol=0),
        "npy": fuzzing.npy(np.array([bomb], object)),
        "npz": fuzzing.npz({"transition": np.array([bomb], object), "reward": np.zeros((1, 1))}),
        "npy in an npz's place": fuzzing.npy(np.array(bomb, object)),
    }


RUN = [
    "config.json",
    "metrics.jsonl",
    "evaluations.jsonl",
    "evaluation.json",
    "policy/policy.json",
    "policy/policy.safetensors",
    "checkpoints/update-00000003.json",
    "checkpoints/update-00000003.safetensors",
]
TABLES = ["mdp.json", "mdp.npz", "old.npy", "new.npy"]


def commands(given: Path, place: str = "run") -> list[list[str]]:
    """Everything that reads what stands in this place."""
    run, old, new = (str(given / name) for name in ("run", "old.npy", "new.npy"))
    if not place.startswith("run"):
        mdps = ["mdp.json", "mdp.npz"] if place.startswith("mdp") else ["mdp.npz"]
        return [["certify", str(given / mdp), "--old", old, "--new", new] for mdp in mdps]
    told = str(given / "run/config.json")
    going = [["evaluate", run, "--episodes", "1"], ["resume", run], ["train", "--config", told]]
    return [["doctor", run], ["report", run], ["export", run, "--to", "onnx"], *going]


def says(argv: list[str], capsys: Any) -> tuple[int, str]:
    """The exit code and everything that was printed; one line where the command refused."""
    capsys.readouterr()
    code = cli.main(argv)
    told = capsys.readouterr()
    assert "Traceback" not in told.out + told.err
    assert all(line.isprintable() for line in (told.out + told.err).splitlines())
    if code == 2:
        assert told.out == ""
        notes = tuple(f"surefoot: {note}" for note in fuzzing.NOTES)
        refusals = [line for line in told.err.splitlines() if not line.startswith(notes)]
        assert len(refusals) == 1
    return code, told.out + told.err


def test_a_pickle_runs_where_it_is_let(tmp_path):
    for name, content in bombs(tmp_path / "mark").items():
        if name.endswith("pickle"):
            pickle.loads(content)
        else:
            loaded = np.load(fuzzing.io.BytesIO(content), allow_pickle=True)
            _ = loaded["transition"] if name == "npz" else loaded
        (tmp_path / "mark").rmdir()


def test_the_table_has_every_file(sound):
    found = {str(file.relative_to(sound / "run")) for file in (sound / "run").rglob("*") if file.is_file()}
    assert found - {"report.html", "learning_curve.png"} == set(RUN)


@pytest.mark.parametrize("place", [*(f"run/{name}" for name in RUN), *TABLES])
def test_no_pickle_in_any_files_place_is_ever_loaded(place, given, tmp_path, capsys):
    codes = []
    for content in bombs(tmp_path / "mark").values():
        (given / place).write_bytes(content)
        codes += [says(argv, capsys)[0] for argv in commands(given, place)]
    assert not (tmp_path / "mark").exists()
    assert 2 in codes


@pytest.mark.parametrize("part", ["transition", "reward", "discount", "start", "horizon"])
def test_no_object_inside_an_archive_is_ever_loaded(part, given, tmp_path):
    with np.load(given / "mdp.npz") as opened:
        held = dict(opened)
    held[part] = np.array([Bomb(tmp_path / "mark")], object)
    (given / "mdp.npz").write_bytes(fuzzing.npz(held))
    with pytest.raises(sf.ModelError, match="plain arrays"):
        sf.tabular.load(str(given / "mdp.npz"))
    assert not (tmp_path / "mark").exists()


def test_an_archive_that_unpacks_to_more_than_memory_is_refused(given, monkeypatch):
    monkeypatch.setattr(files, "_LARGEST", 100)
    with pytest.raises(sf.ModelError, match="unpacks to"):
        sf.tabular.load(str(given / "mdp.npz"))


def test_names_inside_an_archive_are_no_paths(given, tmp_path):
    with np.load(given / "mdp.npz") as opened:
        held = dict(opened)
    (given / "mdp.npz").write_bytes(
        fuzzing.npz(held | {"../../up": held["start"], str(tmp_path / "abs"): held["start"]})
    )
    before = sorted(tmp_path.parent.rglob("*"))
    with pytest.raises(sf.ModelError, match="no part of an MDP"):
        sf.tabular.load(str(given / "mdp.npz"))
    assert sorted(tmp_path.parent.rglob("*")) == before


@pytest.mark.parametrize("name", ["../../../up", "/tmp/abs", "network.weights[0]/../x", "\x1b[2J"])
def test_names_of_tensors_are_no_paths(name, given, capsys):
    file, description = given / "run/policy/policy.safetensors", given / "run/policy/policy.json"
    header = fuzzing.header_of(file.read_bytes())
    header[name] = header.pop("network.weights.0")
    file.write_bytes(fuzzing.with_header(file.read_bytes(), json.dumps(header).encode()))
    description.write_bytes(fuzzing.described_again(json.loads(description.read_text()), file.read_bytes()))
    code, said = says(["evaluate", str(given / "run")], capsys)
    assert code == 2
    assert "tensor" in said


@pytest.mark.parametrize("size", [2**63, 2**64 - 1, 10**9])
def test_a_header_that_claims_to_be_huge_is_refused(size, given, capsys):
    file = given / "run/policy/policy.safetensors"
    file.write_bytes(size.to_bytes(8, "little") + file.read_bytes()[8:])
    assert says(["evaluate", str(given / "run")], capsys)[0] == 2


# Names of environments and rules.

PLANTED = "planted_by_another"
NAMES = [
    f"{PLANTED}:make",
    f"{PLANTED}:Planted-v0",  # Gymnasium imports what stands before the colon
    f"{PLANTED}.inner:make",
    f" {PLANTED}:make",
    f"{PLANTED}:",
    f"gymnasium:{PLANTED}:make",
]
HARMLESS = [
    PLANTED,
    f"{PLANTED}/Planted-v0",
    f"{PLANTED}.make",
    f"{PLANTED}\uff1amake",
    "../../../up",
    "/abs",
    "",
    ".",
]


@pytest.fixture
def planted(tmp_path, monkeypatch) -> Path:
    """The mark that a module leaves when it is imported."""
    mark = tmp_path / "imported"
    modules = tmp_path / "modules"
    modules.mkdir()
    (modules / f"{PLANTED}.py").write_text(f"import os\nos.makedirs({str(mark)!r}, exist_ok=True)\nmake = None\n")
    monkeypatch.syspath_prepend(modules)
    monkeypatch.delitem(sys.modules, PLANTED, raising=False)
    yield mark
    sys.modules.pop(PLANTED, None)


def renamed(given: Path, **told: Any) -> None:
    settings, policy = given / "run/config.json", given / "run/policy/policy.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | told))
    tensors = policy.with_suffix(".safetensors").read_bytes()
    policy.write_bytes(fuzzing.described_again(json.loads(policy.read_text()) | told, tensors))


@pytest.mark.parametrize("name", [*NAMES, *HARMLESS])
def test_no_module_that_a_run_names_is_imported_unasked(name, given, planted, capsys):
    renamed(given, environment=name)
    before = {path for path in given.parent.rglob("*") if given / "run" not in path.parents}
    for argv in commands(given):
        code, said = says(argv, capsys)
        assert code == 2 or argv[0] in ("doctor", "report", "export")
        if argv[0] in ("evaluate", "resume", "train") and name in NAMES:
            assert "allow" in said
    sf.load(given / "run")
    assert not planted.exists()
    assert PLANTED not in sys.modules
    assert {path for path in given.parent.rglob("*") if given / "run" not in path.parents} == before


@pytest.mark.parametrize("command", ["evaluate", "resume"])
def test_the_module_is_imported_where_it_is_allowed(command, given, planted, capsys):
    renamed(given, environment=f"{PLANTED}:make")
    assert says([command, str(given / "run"), "--allow-env"], capsys)[0] == 2
    assert planted.exists()


@pytest.mark.parametrize("rule", [f"{PLANTED}:make", PLANTED, f"{PLANTED}.make", "__class__", "pi", ["pg"], None, {}])
def test_no_rule_is_looked_for_in_modules(rule, given, planted, capsys):
    renamed(given, rule=rule)
    assert [says(argv, capsys)[0] for argv in commands(given) if argv[0] in ("resume", "train")] == [2, 2]
    for argv in commands(given)[:2]:
        assert says(argv, capsys)[0] in (0, 1, 2)
    assert not planted.exists()


# Links and pipes.


@pytest.mark.parametrize("place", ["checkpoints", "policy", "policy/policy.json", "learning_curve.png", "tensorboard"])
def test_a_run_is_not_gone_on_with_through_a_link(place, given, tmp_path, capsys):
    elsewhere, link = tmp_path / "elsewhere", given / "run" / place
    if link.is_file() or link.is_dir():
        shutil.move(link, elsewhere)
    else:
        elsewhere.mkdir()
    link.symlink_to(elsewhere)
    code, said = says(["resume", str(given / "run")], capsys)
    assert code == 2
    assert "is a link" in said


def test_a_report_takes_a_links_place_and_does_not_follow_it(given, tmp_path, capsys):
    page = given / "run" / "report.html"
    page.unlink()
    (tmp_path / "mine").write_text("mine")
    page.symlink_to(tmp_path / "mine")
    assert says(["report", str(given / "run")], capsys)[0] == 0
    assert (tmp_path / "mine").read_text() == "mine"
    assert not page.is_symlink()


@pytest.mark.parametrize("place", [*(f"run/{name}" for name in RUN), *TABLES])
def test_a_pipe_in_a_files_place_is_not_waited_for(place, given, capsys):
    (given / place).unlink()
    os.mkfifo(given / place)
    codes = [says(argv, capsys)[0] for argv in commands(given, place)]
    assert 2 in codes


# What is shown.

HOSTILE = """</script><img src=x onerror="alert(1)">'"><svg onload=alert(2)></style>&lt;b&gt;{{7*7}}<!--"""


class Elements(html.parser.HTMLParser):
    """The elements of a page with their attributes, and the texts of its scripts."""

    def __init__(self, text: str):
        super().__init__()
        self.elements: list[tuple[str, tuple[str, ...]]] = []
        self.scripts: list[str] = []
        self.comments = 0
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, tuple(sorted(name for name, _ in attrs))))
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data):
        if self.elements and self.elements[-1][0] == "script":
            self.scripts[-1] += data

    def handle_comment(self, data):
        self.comments += 1


def page(folder: Path, text: str) -> str:
    """The report of a run that recorded this text wherever it could, beside another's."""
    config = {"environment": text, "rule": text, "trust_region": text, "seed": text, text: text}
    told = {"unjudged": text, "refusal": text, "best_bound": text, text: text, f"{text}2": 1.5}
    rows = [row | told for row in histories.healthy_rows()]
    evaluation = {"return": {"mean": text, "std": text, "episodes": text}, "repeatable": False, text: text}
    named = folder / text.replace("/", "|")
    run = histories.write_run(named, rows, config=config, evaluation=evaluation)
    other = histories.write_run(folder / "other")
    file = folder / "page.html"
    assert cli.main(["report", str(run), str(other), "--out", str(file)]) == 0
    return file.read_text()


def test_nothing_that_a_run_recorded_becomes_part_of_the_page(tmp_path):
    text = page(tmp_path, HOSTILE)
    found, expected = Elements(text), Elements(page(tmp_path, "word"))
    assert "&lt;/script&gt;&lt;img src=x" in text
    assert found.elements == expected.elements
    assert found.comments == expected.comments == 0
    for script in found.scripts[:-1]:
        json.loads(script)
    assert found.scripts[-1] == expected.scripts[-1]


def test_nothing_that_a_terminal_obeys_is_printed(given, capsys):
    evil = "\x1b]0;owned\x07\x1b[2J\u202e\x9b"
    renamed(given, environment=evil, rule=evil, trust_region=evil)
    (given / "run").rename(given / f"run{evil}\n")
    run = str(given / f"run{evil}\n")
    for command in ("doctor", "report", "evaluate", "resume"):
        assert "\\x1b" in says([command, run], capsys)[1]
    assert "\\x1b" in says(["evaluate", str(given / evil)], capsys)[1]
    assert "\\x1b" in says([evil], capsys)[1]


def test_a_name_that_no_encoding_has_is_printed_as_its_code(tmp_path, capsys):
    run = histories.write_run(tmp_path / os.fsdecode(b"run\xff"))
    assert cli.main(["report", str(run)]) == 0
    assert "\\udcff" in capsys.readouterr().out
    assert cli.main(["doctor", str(run)]) == 0


# JSON.


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[" * 100_000, "deep"),
        ("[" * 66 + "]" * 66, "more than 64 deep"),
        ("1" * 301, "301 digits"),
        ("1" * 5000, "5000 digits"),
        ('"\\ud800"', "half of a surrogate pair"),
        ('{"\\udfff": 1}', "half of a surrogate pair"),
        (b"\xff", "utf-8"),
        ("", "Expecting value"),
    ],
)
def test_json_that_could_do_harm_is_refused(text, said):
    with pytest.raises(ValueError, match=said):
        parse_json(text)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (b"\xef\xbb\xbf[1]", [1]),
        ("[" * 64 + "]" * 64, None),
        ("1" * 300, int("1" * 300)),
        ('"\\ud83d\\ude00"', "\N{GRINNING FACE}"),
        ('"' + "[" * 1000 + '"', "[" * 1000),
    ],
)
def test_json_that_does_none_is_read(text, value):
    assert value is None or parse_json(text) == value
    parse_json(text)


# The library itself.

FORBIDDEN_MODULES = {
    "pickle",
    "cloudpickle",
    "dill",
    "marshal",
    "shelve",
    "joblib",
    "yaml",
    "runpy",
    "code",
    "jsonpickle",
}
MAY_IMPORT = {SOURCE / "__init__.py", SOURCE / "sources" / "environments.py"}  # its own modules; the user's own code
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__"}


@pytest.mark.parametrize("file", sorted(SOURCE.rglob("*.py")), ids=lambda file: str(file.relative_to(SOURCE)))
def test_nothing_in_the_library_could_load_code(file):
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            assert not {alias.name.split(".")[0] for alias in node.names} & FORBIDDEN_MODULES
        elif isinstance(node, ast.ImportFrom):
            assert (node.module or "").split(".")[0] not in FORBIDDEN_MODULES
        elif isinstance(node, ast.Call):
            assert not (isinstance(node.func, ast.Name) and node.func.id in FORBIDDEN_CALLS)
            for keyword in node.keywords:
                refuses = isinstance(keyword.value, ast.Constant) and keyword.value.value is False
                assert keyword.arg != "allow_pickle" or refuses
        elif isinstance(node, ast.Attribute):
            assert node.attr not in {"import_module", "load_module", "exec_module"} or file in MAY_IMPORT


# Compiled programs are machine code: they come from a folder that nobody else can write in.


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    names = ["jax_compilation_cache_dir", "jax_enable_compilation_cache"]
    names += ["jax_persistent_cache_min_compile_time_secs", "jax_persistent_cache_min_entry_size_bytes"]
    before = {name: jax.config.values[name] for name in names}
    jax.config.update("jax_compilation_cache_dir", None)
    jax.config.update("jax_enable_compilation_cache", True)
    yield tmp_path / "surefoot" / "compiled"
    for name, value in before.items():
        jax.config.update(name, value)


def test_compiled_programs_are_kept_where_nobody_else_can_write(cache):
    compilation.keep_compiled_programs()
    assert jax.config.values["jax_compilation_cache_dir"] == str(cache)
    assert cache.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o777, 0o1777])
def test_compiled_programs_are_not_read_from_a_folder_that_others_can_write_in(mode, cache):
    cache.mkdir(parents=True)
    cache.chmod(mode)
    compilation.keep_compiled_programs()
    assert jax.config.values["jax_compilation_cache_dir"] is None


def test_compiled_programs_are_not_read_from_anothers_folder(cache, monkeypatch):
    cache.mkdir(parents=True, mode=0o700)
    owner = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: owner + 1)
    compilation.keep_compiled_programs()
    assert jax.config.values["jax_compilation_cache_dir"] is None
