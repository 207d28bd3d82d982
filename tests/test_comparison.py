"""Comparisons: which rules run with which settings, what they come to against one another, and how they go on."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest

import surefoot as sf
from histories import healthy_rows, write_run
from surefoot import cli, config, course, turns
from surefoot.cli.studies import table
from surefoot.comparison import COMPARED, label_of, make_comparison
from surefoot.errors import RunError, SettingError, Stopped
from surefoot.history import read
from surefoot.report.curves import MOST_SETTINGS, curves_of
from surefoot.report.study_page import study_page
from surefoot.study_record import (
    FILE,
    MOST_COMPARED,
    Account,
    Member,
    StudyRecord,
    as_told,
    described,
    improvements,
    read_study,
    rows_of,
)
from surefoot.turns import Outcome
from tiny import TINY

OPTIONS = ["--envs", "2", "--horizon", "8", "--hidden", "8", "--critic-hidden", "8", "--critic-epochs", "1"]
OPTIONS += ["--evaluation-episodes", "1", "--steps", "32", "--source", "gymnasium", "--vectorisation", "sync"]
SMALL = TINY | {"source": "gymnasium", "steps": 32}
ACCOUNTS = [(0.1, 0.2, 0.0), (0.3, 0.9, 0.5), (0.2, 0.3, 0.1)]


@pytest.fixture
def undrawn(monkeypatch):
    """The picture has tests of its own, and takes longer than all that is tested with this."""
    monkeypatch.setattr(course, "study_picture", lambda folder: None)


# What is run.


@pytest.mark.parametrize(
    ("rule", "label"),
    [
        (config.TRPO(), "trpo"),
        (config.TRPO(radius=0.04, subsample=0.2), "trpo"),  # the defaults, said aloud
        (config.TRPO(radius=0.05), "trpo_radius0.05"),
        (config.KLPenalty(stop=None, adapt="sqrt"), "kl-penalty_adaptsqrt_stopnone"),
        (config.PPO(step_size=1e-05, standardise=False), "ppo_step_size1e-05_standardiseFalse"),
        # Without damping all rows are taken unless another share is said.
        (config.TRPO(damping=0.0), "trpo_damping0"),
        (config.TRPO(damping=0.0, subsample=1.0), "trpo_damping0"),
        (config.TRPO(damping=0.0, subsample=0.2), "trpo_damping0_subsample0.2"),
    ],
)
def test_a_label_is_the_name_and_what_was_chosen(rule, label):
    assert label_of(rule) == label
    assert make_comparison([rule], {}, 1).points[0].folder(3) == f"runs/{label}-s3"


def test_a_label_too_long_for_a_folder_is_shortened_and_still_its_own():
    digits = dict.fromkeys(("radius", "damping", "tolerance", "shrink", "accept", "subsample"), 0.123456789012345)
    one, other = (label_of(config.TRPO(**digits, solver="dense", iterations=number)) for number in (7, 8))
    assert one != other
    assert max(len(one), len(other)) <= 160


def test_every_rule_is_run_with_every_seed_and_the_settings_of_all():
    wanted = make_comparison([config.PG(), config.PPO()], {"seed": 4, "envs": 8}, 2)
    made = [(wanted.rule(point).name, wanted.run(point, seed)) for point in wanted.points for seed in wanted.every_seed]
    assert [(name, run.seed, run.collection.envs) for name, run in made] == [
        ("pg", 4, 8),
        ("pg", 5, 8),
        ("ppo", 4, 8),
        ("ppo", 5, 8),
    ]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("--rules trop", "rules must be of trpo, npg, pg, kl-penalty, dual, ppo, pi, but 'trop' came (did you mean"),
        ("--rules trpo,,ppo", "rules must be of"),
        ("--rules pi", "is for finite MDPs"),
        ("--rules trpo,ppo,trpo", "rules: trpo is named twice"),
        ("--rules trpo,npg --rule.clip 0.1", "--rule.clip is no option of any of the rules trpo, npg"),
        ("--rules trpo,ppo --rule.clip 2", "clip must be a number, above 0 and below 1"),
        ("--seeds 0", "seeds must be a whole number, at least 1"),
        ("--seeds 1000", "seeds and rules make 6000 runs"),
        ("--lanes 0", "lanes must be a whole number"),
        ("--rule ppo", "--rule is no option"),
    ],
)
def test_what_cannot_be_compared_is_one_line_before_anything_is_written(line, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["compare", "CartPole-v1", *line.split()]) == 2
    told = capsys.readouterr()
    assert said in told.err
    assert (told.out, len(told.err.splitlines())) == ("", 1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("rules", ["trpo", [], ["trpo", 3], [sf.TRPO(), "trpo"]], ids=str)
def test_rules_that_are_none_are_refused_in_python(rules, tmp_path):
    with pytest.raises(SettingError, match=r"^rules?[: ]"):
        sf.compare("CartPole-v1", rules, out=tmp_path / "study", progress=False)
    assert list(tmp_path.iterdir()) == []


def trained(calls, failing=()):
    """`train` that takes no time: a run of a healthy history, whose return is its seed and its rule's place."""

    def train(environment, rule, *, out, told, stop, progress, **settings):
        calls.append((f"{out.parent.name}/{out.name}", rule, settings))
        write_run(out, healthy_rows(5), evaluation=None)
        if out.name in failing:
            raise sf.EnvironmentFault("it broke")
        reached = settings["seed"] + 10.0 * COMPARED.index(rule.settings_class.name)
        told = {"return": {"mean": reached, "std": 0.0, "episodes": 1}}
        (out / "evaluation.json").write_text(json.dumps(told))
        return SimpleNamespace(evaluation=told, steps=5 * 2048)

    return train


@pytest.mark.long
def test_settings_that_rules_share_go_to_those_that_have_them(tmp_path, monkeypatch, undrawn):
    calls = []
    monkeypatch.setattr(turns, "train", trained(calls))
    out = tmp_path / "study"
    line = ["--rules", "trpo,ppo", "--radius", "0.05", "--rule.clip", "0.1", "--seeds", "1", "--out", str(out)]
    assert cli.main(["compare", "CartPole-v1", *OPTIONS, *line]) == 0
    (first, trpo, settings), (second, ppo, others) = calls
    assert (first, second) == ("runs/trpo_radius0.05-s0", "runs/ppo_clip0.1-s0")
    assert (trpo.settings().radius, ppo.settings().clip) == (0.05, 0.1)
    assert settings == others
    assert (settings["steps"], settings["envs"], settings["seed"]) == (32, 2, 0)


# What they come to.


def members(**returns):
    return [
        Member(f"runs/{rule}-s{seed}", {"rule": rule}, seed, "finished", None, value, 100, Account(2.0, 50.0, *told))
        for rule, values in returns.items()
        for seed, (value, told) in enumerate(
            zip(values, [(0.1, 0.2, 0.0), (0.3, 0.9, 0.5), (0.2, 0.3, 0.1)], strict=True)
        )
    ]


def test_a_row_has_the_mean_and_deviation_of_its_seeds_and_their_account():
    (row,) = rows_of([*members(trpo=[1.0, 2.0, 6.0]), Member("runs/trpo-s3", {"rule": "trpo"}, 3, "failed", "why")])
    assert (row.value, row.mean, row.std) == (3.0, 3.0, pytest.approx(np.std([1, 2, 6])))
    assert row.account == Account(2.0, 50.0, pytest.approx(0.2), 0.9, pytest.approx(0.2))


def test_improvement_is_told_of_every_rule_over_every_other():
    told = as_told(members(trpo=[1.0, 2.0, 6.0], ppo=[0.0, 2.0, 3.0]))["improvement"]
    assert [(pair["setting"]["rule"], pair["over"]["rule"]) for pair in told] == [("trpo", "ppo"), ("ppo", "trpo")]
    # 1 > 0; 2 > 0, 2 = 2; 6 > all: 5.5 of 9.
    assert [pair["probability"] for pair in told] == pytest.approx([5.5 / 9, 3.5 / 9])
    assert told[0]["lower"] == pytest.approx(1 - told[1]["upper"])
    assert 0 <= told[0]["lower"] < 5.5 / 9 < told[0]["upper"] <= 1


def test_a_rule_without_a_finished_run_improves_on_nothing_and_nothing_on_it():
    lost = Member("runs/npg-s0", {"rule": "npg"}, 0)
    found = improvements([*members(trpo=[1.0, 2.0, 6.0]), lost, *members(ppo=[0.0, 2.0, 3.0])])
    assert [[cell is None for cell in line] for line in found] == [[True, True, False], [True] * 3, [False, True, True]]
    assert improvements(members(trpo=[1.0, 2.0, 6.0])) == []
    assert improvements([lost._replace(values={"radius": place}) for place in range(MOST_COMPARED + 1)]) == []


def test_the_table_has_the_account_and_the_chances(tmp_path):
    lines = table(StudyRecord(tmp_path, "E", "trpo, ppo", members(trpo=[1.0, 2.0, 6.0], ppo=[0.0, 2.0, 3.0])))
    assert lines[0].startswith("rule")
    assert lines[1].split()[-5:] == ["2", "50", "0.2", "0.9", "20.0%"]
    chances = {line.split()[0]: line for line in lines[lines.index("") :] if line}
    assert "0.61" in chances["trpo"]
    assert "0.39" in chances["ppo"]


# A comparison as a user makes it.


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Two rules that share a program, which is half the time of two that do not."""
    out = tmp_path_factory.mktemp("comparison") / "whole"
    sf.compare("CartPole-v1", ["pg", sf.PG(radius=0.01)], seeds=1, seed=3, out=out, **SMALL)
    return SimpleNamespace(path=out)


def test_a_comparison_is_a_study_of_full_runs(whole):
    assert {path.name for path in whole.path.iterdir()} == {"runs", "study.html", "study.json", "study.png"}
    told = json.loads((whole.path / FILE).read_text())
    assert {label: rule["rule"] for label, rule in told["rules"].items()} == {"pg": "pg", "pg_radius0.01": "pg"}
    assert told["seeds"] == [3]
    for run in told["runs"]:
        recorded = read(whole.path / run["folder"])
        assert run["folder"] == f"runs/{run['setting']['rule']}-s{run['seed']}"
        radius = told["rules"][run["setting"]["rule"]]["settings"]["radius"]
        assert (recorded.config["rule_settings"]["radius"], recorded.config["seed"]) == (radius, run["seed"])
        assert (run["return"], run["seconds"]) == (recorded.evaluation["return"]["mean"], recorded.rows[-1]["seconds"])
        kl = recorded.column("kl")
        assert (run["mean_kl"], run["largest_kl"]) == (pytest.approx(kl.mean()), kl.max())
        assert run["refused"] == np.mean(recorded.column("accepted") == 0)
        assert run["steps_per_second"] == pytest.approx(run["steps"] / run["seconds"])


def test_a_comparison_is_told_in_tables_and_as_one_object(whole, capfd):
    assert cli.main(["resume", str(whole.path)]) == 0
    told = capfd.readouterr().out
    assert "P(row > column)" in told
    assert str(whole.path / "study.html") in told
    assert cli.main(["resume", str(whole.path), "--json"]) == 0
    told = json.loads(capfd.readouterr().out)
    recorded = json.loads((whole.path / FILE).read_text())
    keys = ("environment", "rules", "seeds", "versions", "runs", "rows", "improvement")
    assert told == {"study": str(whole.path), **{key: recorded[key] for key in keys}}


def test_report_and_doctor_read_a_comparison(whole, tmp_path, capsys):
    (whole.path / "study.html").unlink()
    assert cli.main(["report", str(whole.path), "--out", str(tmp_path / "page.html")]) == 0
    assert "pg_radius0.01-s3" in (tmp_path / "page.html").read_text()
    assert (whole.path / "study.html").exists()
    capsys.readouterr()
    cli.main(["doctor", str(whole.path)])
    assert capsys.readouterr().out.count("runs/pg_radius0.01-s") == 1


# Going on.


@pytest.fixture(scope="module")
def never_run(tmp_path_factory):
    """The folder of a comparison of two rules whose runs are made up."""
    out = tmp_path_factory.mktemp("begun") / "study"
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(course, "study_picture", lambda folder: None)
        monkeypatch.setattr(turns, "train", trained([]))
        sf.compare("CartPole-v1", ["pg", sf.TRPO(radius=0.05)], seeds=2, out=out, **SMALL)
    return out


@pytest.fixture
def begun(never_run, tmp_path, monkeypatch, undrawn):
    """A comparison of two rules that was never run, and the calls of `train` from then on."""
    calls = []
    monkeypatch.setattr(turns, "train", trained(calls))
    out = shutil.copytree(never_run, tmp_path / "study")
    return SimpleNamespace(path=out, calls=calls)


@pytest.mark.parametrize(
    ("rules", "seeds", "seed", "new"),
    [
        (["pg"], 1, 0, []),
        (["pg", "ppo"], 2, 0, ["runs/ppo-s0", "runs/ppo-s1"]),
        ([sf.TRPO(radius=0.05)], 3, 0, ["runs/pg-s2", "runs/trpo_radius0.05-s2"]),
        ([sf.TRPO(radius=0.03)], 1, 0, ["runs/trpo_radius0.03-s0", "runs/trpo_radius0.03-s1"]),
        (["pg"], 1, 2, ["runs/pg-s2", "runs/trpo_radius0.05-s2"]),
    ],
    ids=["fewer", "a rule", "a seed", "a radius", "the next seed"],
)
def test_what_is_new_is_added_and_no_run_made_again(begun, rules, seeds, seed, new):
    before = read_study(begun.path).members
    done = sf.compare("CartPole-v1", rules, seeds=seeds, out=begun.path, **SMALL, seed=seed)
    assert [folder for folder, *_ in begun.calls] == new
    assert {member.folder for member in done.runs} == {member.folder for member in before} | set(new)
    assert all(member in done.runs for member in before)
    assert {member.status for member in done.runs} == {"finished"}
    assert len(done.runs) == len(done.rows) * len({member.seed for member in done.runs})


@pytest.mark.parametrize(
    ("environment", "given", "said"),
    [
        ("Acrobot-v1", {}, "compares rules in CartPole-v1, but Acrobot-v1 came"),
        ("CartPole-v1", {"steps": 64}, "was begun with steps 32, but 64 came"),
        ("CartPole-v1", {"discount": 0.9}, "was begun with discount 0.99, but 0.9 came"),
        ("CartPole-v1", {"seed": 7}, "has the seeds 0 to 1, and 7 to 8 leave some out between"),
    ],
)
def test_a_folder_of_another_comparison_is_refused_and_left_alone(begun, environment, given, said):
    before = (begun.path / FILE).read_bytes()
    with pytest.raises(RunError, match=said) as raised:
        sf.compare(environment, ["pg", "ppo"], seeds=2, out=begun.path, **SMALL | given)
    assert "\n" not in str(raised.value)
    assert (begun.calls, (begun.path / FILE).read_bytes()) == ([], before)


def test_a_label_whose_settings_are_others_is_refused(begun):
    # As after an update of surefoot that changes a default.
    told = json.loads((begun.path / FILE).read_text())
    told["rules"]["pg"]["settings"]["radius"] = 0.5
    (begun.path / FILE).write_text(json.dumps(told))
    with pytest.raises(RunError, match=r"was begun with pg: radius 0.5, but 0.003 came"):
        sf.compare("CartPole-v1", ["pg"], seeds=2, out=begun.path, **SMALL)


def test_a_study_of_one_rule_is_no_comparison(tmp_path, monkeypatch, undrawn):
    monkeypatch.setattr(turns, "train", trained([]))
    sf.study("CartPole-v1", "pg", seeds=2, out=tmp_path / "study", **SMALL)
    with pytest.raises(RunError, match="holds a study of one rule, not a comparison"):
        sf.compare("CartPole-v1", ["pg"], out=tmp_path / "study", **SMALL)


def test_a_comparison_that_was_stopped_is_resumed_with_the_rules_it_was_begun_with(tmp_path, monkeypatch, undrawn):
    calls = []
    monkeypatch.setattr(turns, "train", trained(calls))
    out = tmp_path / "study"
    asked = iter([False, False, True])
    with pytest.raises(Stopped, match="stopped with 2 of 4 runs finished"):
        sf.compare(
            "CartPole-v1", ["pg", sf.TRPO(radius=0.05)], seeds=2, out=out, stop=lambda: next(asked, True), **SMALL
        )
    assert cli.main(["resume", str(out)]) == 0
    assert [folder for folder, *_ in calls] == [
        f"runs/{label}-s{s}" for label in ("pg", "trpo_radius0.05") for s in (0, 1)
    ]
    assert [float(rule.radius) for _, rule, _ in calls[2:]] == pytest.approx([0.05, 0.05])


def test_a_run_that_fails_stops_no_other_and_is_on_the_page(tmp_path, monkeypatch, undrawn, capfd):
    monkeypatch.setattr(turns, "train", trained([], failing=["pg-s1"]))
    out = tmp_path / "study"
    line = ["compare", "CartPole-v1", *OPTIONS, "--rules", "pg,ppo", "--seeds", "2", "--out", str(out)]
    assert cli.main(line) == 2
    assert "failed: runs/pg-s1: it broke" in capfd.readouterr().out
    assert [member.status for member in read_study(out).members] == ["finished", "failed", "finished", "finished"]
    page = (out / "study.html").read_text()
    assert "<code>runs/pg-s1</code> it broke" in page
    assert "1, 1 failed" in page


def test_the_page_is_written_after_every_finished_run(tmp_path, monkeypatch, undrawn):
    seen, made, out = [], trained([]), tmp_path / "study"

    def train(*given, **settings):
        seen.append(read_study(out).members[0].status == "finished" and (out / "study.html").exists())
        return made(*given, **settings)

    monkeypatch.setattr(turns, "train", train)
    monkeypatch.setattr(course, "SHARE", 1.0)
    sf.compare("CartPole-v1", ["pg", "ppo"], seeds=1, out=out, **SMALL)
    assert seen == [False, True]


def test_rules_of_a_functional_environment_are_each_made_together(tmp_path, monkeypatch, undrawn):
    calls = []

    def together(environment, plans, *, finished, lanes, progress, stop, told):
        calls.append(([plan.folder.name for plan in plans], lanes))
        return [Outcome(None, "it broke")] * len(plans)

    monkeypatch.setattr(course, "train_together", together)
    sf.compare("functional_probes:walk", ["pg", "ppo"], seeds=2, out=tmp_path / "s", lanes=3, progress=False, envs=4)
    assert calls == [(["pg-s0", "pg-s1"], 3), (["ppo-s0", "ppo-s1"], 3)]


def change(**parts):
    return lambda told: told | parts


BROKEN = {
    "no rules": (change(rules={}), "rules must be a JSON object with at least one rule"),
    "rules of a list": (change(rules=["pg"]), "rules must be a JSON object"),
    "a label outside": (change(rules={"../x": {"rule": "pg", "settings": {}}}), "rules must hold labels"),
    "a rule that is none": (change(rules={"pg": {"rule": "gp", "settings": {}}}), "rule must be one of"),
    "a rule for tables": (change(rules={"pi": {"rule": "pi", "settings": {}}}), "is for finite MDPs"),
    "a setting that is none": (change(rules={"pg": {"rule": "pg", "settings": {"clip": 1}}}), "unknown setting 'clip'"),
    "a rule without a name": (change(rules={"pg": {"settings": {}}}), "rule must be"),
    "a run's rule outside": (
        lambda told: told | {"runs": [told["runs"][0] | {"setting": {"rule": "../x"}}]},
        "setting must hold numbers, or a rule's label",
    ),
    "seconds of words": (
        lambda told: told | {"runs": [told["runs"][0] | {"seconds": "x"}]},
        "seconds must be a number or null",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_anyone_may_have_written_is_refused_in_one_line(name, whole, tmp_path, capsys):
    broken, said = BROKEN[name]
    (tmp_path / FILE).write_text(json.dumps(broken(json.loads((whole.path / FILE).read_text()))))
    assert cli.main(["resume", str(tmp_path)]) == 2
    printed = capsys.readouterr()
    assert said in printed.err
    assert (printed.out, len(printed.err.splitlines())) == ("", 1)
    assert [path.name for path in tmp_path.iterdir()] == [FILE]


# The page.


def fake(folder, settings, seeds, updates=5, rule=lambda place: {"rule": f"rule{place}"}):
    """A comparison of runs that were never run."""
    made = []
    for place in range(settings):
        for seed in range(seeds):
            member = Member(
                f"runs/p{place}-s{seed}", rule(place), seed, "finished", None, 100.0 * place + seed, updates
            )
            write_run(folder / member.folder, healthy_rows(updates), config={"seed": seed})
            made.append(member)
    told = {"environment": "E<b>&", "rules": {}, **as_told(made)}
    (folder / FILE).write_text(json.dumps(told))
    return folder


def test_the_page_needs_nothing_else_escapes_names_and_names_its_drawings(tmp_path):
    page = study_page(fake(tmp_path / "study", 3, 3)).read_text()
    assert "E&lt;b&gt;&amp;" in page
    assert "<b>&" not in page
    assert "http" not in page.replace("http-equiv", "")
    assert page.count('<svg class="strip"') == page.count('role="img" aria-label="Seeds: ') == 3
    drawings = page.count('preserveAspectRatio="none" role="img" aria-labelledby=')
    assert drawings == 2


@pytest.mark.parametrize(("settings", "seeds", "updates"), [(1, 1, 0), (1, 1, 1), (2, 1, 3), (2, 2, 2)])
def test_the_page_of_any_study_can_be_written(settings, seeds, updates, tmp_path):
    assert study_page(fake(tmp_path / "study", settings, seeds, updates)).stat().st_size > 10_000


def test_the_page_of_a_large_study_stays_small(tmp_path, monkeypatch):
    folder = fake(tmp_path / "study", MOST_SETTINGS + 2, 1, updates=2, rule=lambda place: {"radius": place + 1.0})
    monkeypatch.setattr("surefoot.report.curves.read", lambda run: long_run)
    long_run = read(write_run(tmp_path / "long", healthy_rows(2000)))
    assert 100_000 < study_page(folder).stat().st_size < 1_000_000


def test_curves_tell_of_every_update_between_two_places(tmp_path):
    rows = healthy_rows(1000)
    rows[500]["kl"] = 3.0
    write_run(tmp_path / "runs/s0", rows)
    member = Member("runs/s0", {}, 0, "finished", None, 1.0)
    curves = curves_of(StudyRecord(tmp_path, "E", "trpo", [member]), [member])
    assert len(curves.steps) == 200
    # Stretches are of five updates, and the large one counts in one of them.
    assert curves.kl.middle.max() == pytest.approx((3.0 + 4 * 0.009) / 5, rel=0.3)
    assert curves.updates[-1] == 1000
    assert described(member.values) == "as given"


def test_a_run_that_is_gone_leaves_the_others(tmp_path):
    folder = fake(tmp_path / "study", 2, 2)
    shutil.rmtree(folder / "runs/p0-s0")
    shutil.rmtree(folder / "runs/p1-s0")
    shutil.rmtree(folder / "runs/p1-s1")
    page = study_page(folder).read_text()
    assert page.count('class="line"') > 0
