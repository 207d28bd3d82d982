"""The house: imports point one way, importing costs nothing, documents and code agree."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import surefoot
from surefoot import config
from surefoot.settings import check

ROOT = Path(surefoot.__file__).parent
DOCS = ROOT.parents[1] / "docs"
ORDER = [
    ["_version", "errors", "compilation", "arrays", "divergences", "reading", "scores"],
    ["cluster", "settings", "files", "study_record", "sharding"],
    ["config"],
    ["recipe", "sweep"],
    ["comparison"],
    ["distributions", "steps"],
    ["spaces"],
    ["networks", "observations"],
    ["convolution"],
    ["policy"],
    ["batch"],
    ["critic"],
    ["advantage", "geometry"],
    ["rules", "bounds"],
    ["sources"],
    ["tabular"],
    ["certificate", "sampled_certificate"],
    ["guard"],
    ["annealing"],
    ["improvement"],
    ["record"],
    ["checkpoint"],
    ["agent"],
    ["evaluation", "export", "kept"],
    ["tensorboard"],
    ["history"],
    ["calibration"],
    ["doctor"],
    ["report"],
    ["progress"],
    ["stages"],
    ["iteration"],
    ["compiled"],
    ["standing"],
    ["resuming"],
    ["ledger", "replaying"],
    ["training"],
    ["turns"],
    ["lanes", "workers"],
    ["course"],
    ["studies"],
    ["lecture"],
    ["cli"],
]
RANK = {name: rank for rank, names in enumerate(ORDER) for name in names}
INDEPENDENT = {
    "history": {"errors", "reading"},
    "scores": set(),
    "study_record": {"errors", "reading", "scores"},
    "calibration": {"history"},
    "doctor": {"errors", "history", "calibration"},
    "report": {"errors", "files", "reading", "history", "calibration", "doctor", "scores", "study_record"},
    "progress": set(),
    "tensorboard": {"errors"},
}
FORBIDDEN = {"rules": {"sources", "critic", "record"}}
FILES = sorted(ROOT.rglob("*.py"))


def place(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    """Places of surefoot that a file imports anywhere outside TYPE_CHECKING."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "surefoot":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("surefoot."):
            found.add(node.module.split(".")[1])
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("surefoot.")}
    return found


@pytest.mark.parametrize("path", [f for f in FILES if f.parent != ROOT or f.name != "__init__.py"], ids=place)
def test_imports_point_one_way(path):
    here = place(path)
    others = imported(path) - {here}
    assert others <= RANK.keys(), "a new file belongs in ORDER"
    assert all(RANK[other] < RANK[here] for other in others)
    if here in INDEPENDENT:
        assert others <= INDEPENDENT[here]
    assert not others & FORBIDDEN.get(here, set())


def run_python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_importing_surefoot_and_asking_for_help_load_nothing_slow():
    code = (
        "import sys, surefoot, surefoot.cli; surefoot.cli.build_parser().format_help();"
        "print([m for m in ('jax', 'equinox', 'gymnasium', 'matplotlib', 'rich', 'numpy') if m in sys.modules])"
    )
    assert run_python(code).strip() == "[]"


def test_importing_surefoot_changes_no_setting_of_jax():
    code = (
        "import jax; before = dict(jax.config.values); import surefoot.training, surefoot.cli;"
        "print([k for k in before if jax.config.values[k] != before[k]])"
    )
    assert run_python(code).strip() == "[]"


def test_the_public_names_are_there_and_no_other_is():
    assert all(getattr(surefoot, name) is not None for name in surefoot.__all__)
    assert {*surefoot._WHERE, *surefoot._MODULES, "__version__"} == set(surefoot.__all__)
    with pytest.raises(AttributeError, match="nonsense"):
        _ = surefoot.nonsense


def test_every_setting_has_help_and_a_legal_default():
    for owner, item in map(config.option_field, config.run_options()):
        assert item.metadata["help"].endswith((".", "reset)", "limits."))
        assert check(owner, item.name, item.default) == item.default
    for rule in config.RULES.values():
        assert rule.__doc__
        rule()


def test_metrics_are_documented_and_nothing_else_is(tmp_path):
    import surefoot.training as loop

    run = loop.train(
        "CartPole-v1",
        steps=16,
        envs=2,
        horizon=8,
        hidden=(8,),
        critic_hidden=(8,),
        critic_epochs=1,
        evaluation_episodes=1,
        evaluate_every=16,
        out=tmp_path / "run",
        progress=False,
    )
    texts = re.split(r"^# (\S+)$", (DOCS / "metrics.md").read_text(), flags=re.MULTILINE)[1:]
    assert texts[::2] == ["metrics.jsonl", "evaluations.jsonl"]
    for file, text in zip(texts[::2], texts[1::2], strict=True):
        row = json.loads((run.path / file).read_text().splitlines()[0])
        rows = re.findall(r"^\| (`.*?) \|", text, flags=re.MULTILINE)
        documented = {name for cell in rows for name in re.findall(r"`(\w+)`", cell)}
        # Runs with Ray's workers have a few more, which test_ray.py sees to.
        assert documented - {"workers_replaced", "workers_restarted", "collected_share"} == set(row)


def test_no_module_has_the_name_of_a_public_function():
    # Importing such a module would put it in the function's place.
    modules = {path.stem for path in ROOT.glob("*.py")} | {path.name for path in ROOT.iterdir() if path.is_dir()}
    assert not modules & set(surefoot._WHERE)
