"""Batches that a run kept, and several rules' steps on one of them."""

import json
import os
import pickle
import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fuzzing
import surefoot as sf
from runs import TINY, after, policy, rows
from surefoot import checkpoint, cli, config, kept
from surefoot.errors import RunError, SettingError, Stopped
from surefoot.report.replay import Trace, replay_picture
from surefoot.resuming import begun_with
from surefoot.training import resume, train

RULE = sf.PG()
SETTINGS = TINY | {"steps": 600, "holdout": 0.25, "progress": False}


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return train("CartPole-v1", RULE, out=tmp_path_factory.mktemp("plain") / "run", **SETTINGS).path


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kept") / "run"
    return train("CartPole-v1", RULE, out=folder, keep_batches=3, **SETTINGS).path


@pytest.fixture(scope="module")
def replayed(run):
    # Twice the largest number of 32 bits is infinite, and no step is that long: a refusal without another program.
    others = [RULE, sf.NPG(radius=0.01), sf.NPG(radius=0.04), sf.NPG(radius=3e38), sf.PG(radius=0.012)]
    return sf.replay(run, update=3, rules=others)


@pytest.fixture
def copy(run, tmp_path):
    """A run that may be spoiled."""
    return shutil.copytree(run, tmp_path / "run")


# Which updates are kept.


@pytest.mark.parametrize(
    ("count", "steps", "ends", "wanted"),
    [
        (0, 100, [50, 100], []),
        (1, 100, [20, 40, 60, 80, 100], [3]),
        (1, 1, [7], [1]),
        (2, 100, [20, 40, 60, 80, 100], [1, 5]),
        (2, 100, [120], [1]),
        (3, 100, [20, 40, 60, 80, 109], [1, 3, 5]),
        (3, 100, [99, 100], [1, 2]),
        (5, 100, [20, 40, 60, 80, 100], [1, 2, 3, 4, 5]),
        (9, 100, [60, 90, 101], [1, 2, 3]),
        (1000, 10, [4, 7, 11], [1, 2, 3]),
    ],
)
def test_the_updates_that_are_kept_are_spread_over_the_run(count, steps, ends, wanted):
    plan = config.make_run(keep_batches=count, steps=steps)
    spans = list(zip([0, *ends], ends, strict=False))
    assert [number for number, span in enumerate(spans, start=1) if kept.due(plan, *span)] == wanted


@settings(max_examples=30)
@given(st.integers(0, 50), st.integers(1, 10_000), st.data())
def test_what_is_surely_not_due_is_not(count, steps, data):
    plan = config.make_run(keep_batches=count, steps=steps)
    before, most = data.draw(st.integers(0, steps - 1)), data.draw(st.integers(1, 500))
    for _ in range(min(kept.surely_not_due(plan, before, most), 20)):
        seen = data.draw(st.integers(0, most))
        if before >= steps:
            break
        assert not kept.due(plan, before, before + seen)
        before += seen


# Keeping.


def test_a_run_that_keeps_batches_is_the_same_run(run, plain):
    assert kept.kept_updates(plain) == []
    assert kept.kept_updates(run) == [1, 3, len(rows(run))]
    assert rows(run) == rows(plain)
    assert policy(run) == policy(plain)


def tensors(run):
    return {file.name: file.read_bytes() for file in sorted((run / "batches").glob("*.safetensors"))}


def test_a_run_that_was_stopped_keeps_the_same_batches(run, tmp_path):
    with pytest.raises(Stopped):
        train("CartPole-v1", RULE, out=tmp_path / "run", keep_batches=3, stop=after(2), **SETTINGS)
    assert kept.kept_updates(tmp_path / "run") == [1]
    resume(tmp_path / "run", progress=False)
    assert tensors(tmp_path / "run") == tensors(run)


def test_what_is_kept_is_what_the_rule_was_given(run):
    recipe, rule, settings = begun_with(run)
    first, last = (kept.load(run, recipe.identity, update, rule, settings.network) for update in (1, 3))
    batch = last.batch
    held_out = np.asarray(batch.weight).reshape(16, 8).sum(axis=0) == 0
    assert held_out.sum() == 2
    assert (first.policy.normaliser.count, last.policy.normaliser.count) == (0, rows(run)[1]["steps"])
    real = np.asarray(batch.weight) > 0
    again = last.policy(batch.observation).log_prob(batch.action)
    np.testing.assert_allclose(again[real], batch.old.log_prob(batch.action)[real], atol=1e-5)


@pytest.mark.long
def test_a_compiled_run_keeps_batches_and_is_the_same_run(tmp_path):
    settings = TINY | {"steps": 1500, "progress": False}
    for name, count in (("plain", 0), ("kept", 3)):
        train("functional_probes:walk", out=tmp_path / name, keep_batches=count, **settings)
    run = tmp_path / "kept"
    assert rows(run) == rows(tmp_path / "plain")
    assert policy(run) == policy(tmp_path / "plain")
    updates = kept.kept_updates(run)
    assert updates[0] == 1
    assert len(updates) == 3
    assert updates[-1] == len(rows(run))
    for update in updates:
        assert sf.replay(run, update=update, rules=[]).repetition.same


@pytest.mark.long
@pytest.mark.parametrize(
    "rule", [sf.TRPO(), sf.KLPenalty(epochs=2), sf.Dual(outer=2)], ids=lambda rule: rule.settings().name
)
def test_under_the_guard_every_rules_own_step_is_repeated(rule, tmp_path):
    run = train(
        "probes:Noise", rule, out=tmp_path / "run", keep_batches=1000, guard=True, guard_confidence=0.5, **SETTINGS
    )
    assert any(row["undone"] for row in rows(run.path)), "nothing was taken back, so this tests less than it says"
    for update in kept.kept_updates(run.path):
        assert sf.replay(run.path, update=update, rules=[]).repetition.same


# Replaying.


def test_the_runs_own_step_is_the_recorded_one(replayed):
    assert replayed.repetition.same
    assert replayed.repetition.difference < 1e-4
    own = replayed.steps[0]
    assert (own.name, own.own) == ("pg (run)", True)
    assert own.moved.kl == pytest.approx(float(own.report.kl), rel=1e-3)


def test_every_rule_begins_from_the_same_policy_and_batch(replayed):
    names = [step.name for step in replayed.steps]
    assert names == ["pg (run)", "npg", "npg 2", "npg 3", "pg"]  # the run's own is not applied twice
    own, npg, longer, refused, pg = replayed.steps
    annealed = rows(replayed.run)[replayed.update - 1]["radius"]
    assert 0.003 / 2 < annealed < 0.003
    assert own.length == pytest.approx(np.sqrt(annealed), rel=1e-4)
    assert pg.length == pytest.approx(2 * np.sqrt(0.003), rel=1e-4)
    assert npg.fisher_length**2 / 2 == pytest.approx(0.01, rel=1e-3)
    assert longer.length == pytest.approx(2 * npg.length, rel=1e-3)
    assert (refused.length, refused.trace, bool(refused.report.accepted)) == (0.0, None, False)
    assert refused.entropy_change == 0
    assert replayed.rows <= 96


def test_cosines_are_those_of_the_steps(replayed):
    taken, refused = [0, 1, 2, 4], 3
    for matrix in (replayed.cosine, replayed.fisher_cosine):
        inner = matrix[np.ix_(taken, taken)]
        np.testing.assert_allclose(inner, inner.T, atol=1e-4)
        np.testing.assert_allclose(np.diag(inner), 1)
        assert np.isnan(matrix[refused]).all()
        assert matrix[1, 2] == pytest.approx(1, abs=1e-5)
    one, other = (replayed.steps[place].vector for place in (0, 1))
    expected = one @ other / np.linalg.norm(one) / np.linalg.norm(other)
    assert replayed.cosine[0, 1] == pytest.approx(expected)
    # The natural step is that of the steepest ascent in the Fisher metric, but for damping.
    assert replayed.fisher_cosine[0, 1] > replayed.cosine[0, 1]
    assert np.isnan(np.array(replayed.as_dict()["cosine"], float)[refused]).all()


def test_a_path_leads_from_nothing_through_the_step(replayed):
    for step in (*replayed.steps[:3], replayed.steps[4]):
        trace = step.trace
        assert (trace.kl[0], trace.gain[0]) == pytest.approx((0, 0), abs=1e-6)
        assert trace.kl[trace.whole] == pytest.approx(float(step.moved.kl), rel=1e-2, abs=1e-7)
        assert trace.gain[trace.whole] == pytest.approx(float(step.moved.surrogate_gain), rel=1e-2)
        assert trace.kl[-1] > trace.kl[trace.whole]
    assert [step.trace.radius for step in replayed.steps[:3]] == [None, pytest.approx(0.01), pytest.approx(0.04)]


def test_a_step_that_is_not_the_recorded_one_is_told_of(copy):
    lines = (copy / "metrics.jsonl").read_text().splitlines()
    told = json.loads(lines[2])
    changed = json.dumps(told | {"step_length": 2 * told["step_length"]})
    (copy / "metrics.jsonl").write_text("\n".join([*lines[:2], changed, *lines[3:]]) + "\n")
    repetition = sf.replay(copy, update=3, rules=[]).repetition
    assert repetition.same is False
    assert str(repetition) == "the run's own step is NOT the recorded one: step_length differs by 50.0%"
    (copy / "metrics.jsonl").write_text("\n".join(lines[:2]) + "\n")
    assert sf.replay(copy, update=3, rules=[]).repetition.same is None


# The command.


def says(argv, capsys):
    code = cli.main([str(word) for word in argv])
    told = capsys.readouterr()
    return code, told.out, told.err


def test_the_command_shows_a_table_and_a_picture(copy, capsys):
    code, out, err = says(["replay", copy], capsys)
    assert (code, err) == (0, "")
    assert out.startswith("kept updates  1, 3, ")
    argv = ["replay", copy, "--update", 3, "--rules", "pg,npg", "--rule.damping", 0.05]
    code, out, _ = says(argv, capsys)
    assert code == 0
    assert "the run's own step repeats the recorded one" in out.splitlines()[0]
    assert out.splitlines()[2].split() == ["pg", "(run)", "npg"]
    picture = copy / "replay-3.png"
    assert picture.read_bytes().startswith(b"\x89PNG")
    picture.unlink()
    code, out, _ = says([*argv, "--json", "--out", copy / "other.png"], capsys)
    told = json.loads(out)
    assert [step["name"] for step in told["steps"]] == ["pg (run)", "npg"]
    assert told["steps"][1]["settings"]["damping"] == 0.05
    assert len(told["steps"][0]["path"]["kl"]) == len(told["steps"][0]["path"]["t"]) == 31
    assert told["picture"] == str(copy / "other.png")
    assert (copy / "other.png").exists()
    assert not picture.exists()


REFUSED = {
    "no such update": (["--update", "2"], "has not kept the inputs of update 2; kept are: 1, 3, "),
    "no update": (["--update", "0"], "update must be a whole number, at least 1, but 0 came"),
    "huge update": (["--update", "1" + "0" * 20], "has not kept the inputs of update 100000000000000000000"),
    "unknown rule": (["--update", "3", "--rules", "pg,trop"], "but 'trop' came (did you mean 'trpo'?)"),
    "rule of tables": (["--update", "3", "--rules", "pi"], "the rule pi is for finite MDPs"),
    "no rule": (["--update", "3", "--rules", ""], "but '' came"),
    "option of none": (
        ["--rules", "pg,npg", "--rule.clip", "0.3"],
        "--rule.clip is no option of any of the rules pg, npg",
    ),
    "illegal": (["--update", "3", "--rules", "npg", "--radius", "-1"], "radius must be a number, above 0"),
    "solver of tables": (["--update", "3", "--rules", "npg", "--rule.solver", "tabular"], "use 'cg'"),
    "picture": (
        ["--update", "3", "--rules", "npg", "--out", "/dev/null/a.png"],
        "cannot be written",
    ),
}


@pytest.mark.parametrize("kl", [np.inf, np.nan])
def test_a_step_that_no_axis_holds_is_told_of(kl, tmp_path):
    trace = Trace("npg", np.array([0.0, kl, kl]), np.array([0.0, 1.0, 1.0]), 1, 0.01)
    with pytest.raises(RunError, match=r"replay\.png cannot be drawn from these steps"):
        replay_picture("a step", [trace], ["npg"], np.ones((1, 1)), np.ones((1, 1)), tmp_path / "replay.png")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", REFUSED)
def test_a_mistake_is_told_in_one_line(name, run, capsys):
    argv, message = REFUSED[name]
    code, out, err = says(["replay", run, *argv], capsys)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert message in err


def test_a_folder_without_a_run_or_without_batches_is_told(plain, tmp_path, capsys):
    assert says(["replay", plain], capsys)[:2] == (0, "kept updates  none; train with --keep-batches\n")
    for argv in (["replay", plain, "--update", 1], ["replay", tmp_path], ["replay", tmp_path / ("a" * 300)]):
        code, out, err = says(argv, capsys)
        assert (code, out, err.count("\n")) == (2, "", 1)


@pytest.mark.parametrize("update", [True, 1.0, "1", None, -1])
def test_an_update_is_a_number(update, run):
    with pytest.raises(SettingError, match="update must be a whole number, at least 1"):
        sf.replay(run, update=update)


# Files that anyone may have written.


def opened(run):
    recipe, rule, settings = begun_with(run)
    return recipe, lambda: kept.load(run, recipe.identity, 3, rule, settings.network)


def negative(arrays):
    arrays["inputs/batch.weight"][0] *= -1


def infinite(arrays):
    arrays["inputs/policy.network.biases.0"][0] = np.inf


CHANGES = {
    "missing": (lambda arrays: arrays.pop("inputs/batch.advantage"), "has no 'inputs/batch.advantage'"),
    "extra": (lambda arrays: arrays.update({"inputs/more": np.zeros(1)}), "'inputs/more', which belongs to no part"),
    "shape": (
        lambda arrays: arrays.update({"inputs/batch.observation": np.zeros((128, 5), np.float32)}),
        r"'inputs/batch.observation' is float32\[128, 5\]",
    ),
    "rows": (lambda arrays: arrays.update({"inputs/batch.weight": np.ones(1, np.float32)}), "but the run has"),
    "no rows": (lambda arrays: arrays.update({"inputs/batch.weight": np.ones(0, np.float32)}), "has no rows"),
    "number": (lambda arrays: arrays.update({"inputs/batch.weight": np.array(1, np.float32)}), "has no rows"),
    "type": (
        lambda arrays: arrays.update({"inputs/batch.observation": np.zeros((128, 4))}),
        "'batch.observation' is float64|observation' is float64",
    ),
    "key": (lambda arrays: arrays.update({"inputs/key": np.zeros(3, np.uint32)}), "'inputs/key' is uint32"),
    "weights": (negative, "weights are not nonnegative with sum 1"),
    "infinite": (infinite, "policy holds values that are not finite"),
    "share": (lambda arrays: arrays.update({"inputs/share": np.array(2, np.float32)}), "share of the trust region"),
    "base": (lambda arrays: arrays.update({"inputs/batch.log_base": np.full(128, -np.inf, np.float32)}), "log_base"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_inputs_that_do_not_fit_are_refused_by_the_part(name, copy):
    change, message = CHANGES[name]
    recipe, load = opened(copy)
    found = checkpoint.read(checkpoint.file_of(copy / "batches", 3))
    arrays = {key: np.array(array) for key, array in found.arrays.items()}
    change(arrays)
    checkpoint.write_pair(copy / "batches", recipe.identity, 3, arrays, found.facts)
    with pytest.raises(RunError, match=message) as raised:
        load()
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("kind", [".json", ".safetensors"])
def test_a_pickle_or_a_pipe_in_a_files_place_is_neither_run_nor_waited_for(kind, copy, tmp_path):
    _, load = opened(copy)
    file = checkpoint.file_of(copy / "batches", 3).with_suffix(kind)
    file.write_bytes(pickle.dumps(Bomb(str(tmp_path / "mark"))))
    with pytest.raises(RunError, match="update-00000003"):
        load()
    assert not (tmp_path / "mark").exists()
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(RunError, match="not a regular file"):
        load()


class Bomb:
    """Leaves a mark where it is unpickled."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (self.mark,)


def test_inputs_of_another_run_and_of_a_larger_network_are_refused(copy):
    found = checkpoint.read(checkpoint.file_of(copy / "batches", 3))
    recipe, load = opened(copy)
    checkpoint.write_pair(copy / "batches", "another", 3, found.arrays, found.facts)
    with pytest.raises(RunError, match="is of another run"):
        load()
    checkpoint.write_pair(copy / "batches", recipe.identity, 3, found.arrays, found.facts)
    told = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(told | {"hidden": [16000, 16000]}))
    with pytest.raises(RunError, match=r"network.hidden \[16000, 16000\] takes \d+ bytes"):
        opened(copy)[1]()


def refusal(load):
    try:
        load()
    except RunError as error:
        return str(error)
    return None


@pytest.mark.parametrize("many", [40, pytest.param(3000, marks=pytest.mark.long)])
def test_broken_files_are_refused_in_one_line(many, run, tmp_path_factory):
    copy = shutil.copytree(run, tmp_path_factory.mktemp("broken") / "run")
    file = checkpoint.file_of(copy / "batches", 3)
    blob = file.with_suffix(".safetensors")
    pristine, tensors = json.loads(file.read_bytes()), blob.read_bytes()
    recipe, load = opened(copy)

    @settings(max_examples=many)
    @given(st.data())
    def holds(data):
        facts, arrays = pristine["facts"], checkpoint.read(file).arrays
        kind = data.draw(st.sampled_from(["facts", "tensors", "arrays"]))
        try:
            if kind == "facts":
                try:
                    facts = json.loads(data.draw(fuzzing.broken_json(facts)))
                except (ValueError, RecursionError):
                    return
                checkpoint.write_pair(copy / "batches", recipe.identity, 3, arrays, facts)
            elif kind == "arrays":
                name = data.draw(st.sampled_from(sorted(arrays)))
                changed = data.draw(fuzzing.arrays(arrays[name]))
                if changed.dtype.kind not in "biuf" or changed.dtype.byteorder == ">":
                    return
                checkpoint.write_pair(copy / "batches", recipe.identity, 3, arrays | {name: changed}, facts)
            else:
                blob.write_bytes(data.draw(fuzzing.broken_tensors(tensors, [b"", b"{}"])))
            refused = refusal(load)
            assert refused is None or len(refused.splitlines()) == 1
        finally:
            file.write_text(json.dumps(pristine))
            blob.write_bytes(tensors)

    holds()
