# ruff: noqa: RUF001 - numbers are written with a true minus
"""The lecture: every claim holds on new random cases, wrong formulas do not, the page and the map are whole."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import pkgutil
import re
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from surefoot import cli
from surefoot.lecture import constraint, drift, guarantees, iteration, region
from surefoot.lecture.chapters import CHAPTERS, CLAIMS
from surefoot.lecture.guarantees import order_violation
from surefoot.lecture.page import formula, prose
from surefoot.lecture.statement import excess, number, worst
from surefoot.tabular import identities

BY_NUMBER = {claim.number: claim for claim in CLAIMS}
DOCUMENTS = Path(__file__).parents[1] / "docs"


def test_the_lecture_has_27_claims_in_order():
    assert [claim.number for claim in CLAIMS] == list(range(1, 28))
    assert sum(len(chapter.figures) for chapter in CHAPTERS) == 8


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: str(claim.number))
def test_every_claims_exact_statement_holds_and_its_verdict_is_seen(claim, rng):
    result = claim.judge(claim.check(rng))
    assert result.holds, result.evidence
    assert result.evidence.residual <= claim.tolerance <= 1e-4
    assert result.evidence.findings
    # What was found can be typeset: nothing of LaTeX is left over.
    for text in (claim.said, claim.exactly, claim.condition, *result.evidence.findings):
        assert "\\" not in prose(text)
        assert "$" not in prose(text)
    for latex in (claim.formula, claim.exact_formula):
        assert "\\" not in formula(latex, "block")


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: str(claim.number))
def test_what_computes_a_claim_is_found_by_the_name_on_the_page(claim):
    assert claim.functions
    for name, function in zip(claim.functions, claim.computed_by, strict=True):
        assert name.startswith("surefoot.")
        assert pkgutil.resolve_name(name) == function


def advantage_off(evaluate):
    """An evaluation whose advantages are those of no policy."""

    def off(mdp, policy):
        account = evaluate(mdp, policy)
        return account._replace(advantage=account.advantage + 1e-6)

    return off


def value_off(evaluate):
    def off(mdp, policy):
        account = evaluate(mdp, policy)
        return account._replace(value=account.value * (1 + 1e-6))

    return off


def shift_off(**changes):
    """A state shift whose named fields are computed wrongly."""

    def mutate(state_shift):
        def off(*arguments):
            shift = state_shift(*arguments)
            return shift._replace(**{name: change(getattr(shift, name)) for name, change in changes.items()})

        return off

    return mutate


def gradient_off(local_geometry):
    def off(*arguments):
        local = local_geometry(*arguments)
        return local._replace(gradient=1.01 * local.gradient)

    return off


WRONG = [  # claim, module, name, what is put in its place
    (1, iteration, "softened", lambda f: lambda old, advantage, m: f(old, advantage, 2 * m)),
    (1, iteration, "softened_value", lambda f: lambda *given: 1.5 * f(*given) + 1),
    (2, identities, "evaluate", value_off),
    (3, identities, "evaluate", advantage_off),
    (4, identities, "evaluate", advantage_off),
    (5, iteration, "sampled_batch", lambda f: lambda *rows: f(*rows[:5], rows[5] ** 2)),
    (6, identities, "evaluate", advantage_off),
    (7, drift, "mistake_law", lambda f: lambda *given: f(*given[:3], given[3] / 2, given[4])),
    (8, drift, "state_shift", shift_off(geometric=lambda g: np.concatenate([[0.0], g[:-1]]))),
    (9, drift, "maximal_coupling", lambda f: np.outer),
    (10, drift, "maximal_coupling", lambda f: np.outer),
    (11, drift, "propagate", lambda f: lambda mdp, weights: f(mdp, 1.001 * weights)),
    (12, drift, "state_shift", shift_off(tv=lambda tv: 2 * tv)),
    (13, guarantees, "total_variation", lambda f: lambda p, q: f(p, q) / 2),
    (14, guarantees, "opposite_rewards", lambda f: lambda: f()._replace(new=f().old)),
    (15, guarantees, "pinsker", lambda f: lambda kl: 0.99 * f(kl)),
    (15, guarantees, "bretagnolle_huber", lambda f: lambda kl: f(0.99 * kl)),
    (16, guarantees, "kl", lambda f: lambda p, q: f(p, q) / (1 if np.ndim(p) == 1 else 3)),
    (17, constraint, "softened_value", lambda f: lambda old, advantage, m: f(old, advantage, m) / 2),
    (18, constraint, "softened", lambda f: lambda old, advantage, m: f(old, advantage, m + 1)),
    (19, constraint, "dual_ascent", lambda f: lambda old, a, radius, **rest: f(old, a, 1.001 * radius, **rest)),
    (20, constraint, "softened", lambda f: lambda old, advantage, m: f(old, advantage, 1.001 * m)),
    (21, constraint, "mode_covering", lambda f: constraint.softened),
    (22, region, "local_geometry", gradient_off),
    (23, region, "step_to_ball", lambda f: lambda gradient, radius: 1.001 * f(gradient, radius)),
    (24, region, "local_geometry", lambda f: lambda *given: f(*given)._replace(gradient=f(*given).natural)),
    (25, region, "fisher_quadratic", lambda f: lambda *given: 1.01 * f(*given)),
    (26, region, "step_to_radius", lambda f: lambda form, radius: f(form, radius / 2)),
    (27, region, "solve", lambda f: lambda fisher, g, damping, *rest: f(fisher, g, damping + 0.01, *rest)),
]


@pytest.mark.parametrize(("claim", "module", "name", "mutate"), WRONG, ids=[f"{row[0]}-{row[2]}" for row in WRONG])
def test_a_wrong_formula_is_not_confirmed(claim, module, name, mutate, monkeypatch, rng):
    monkeypatch.setattr(module, name, mutate(getattr(module, name)))
    claim = BY_NUMBER[claim]
    assert not claim.judge(claim.check(rng)).holds


def test_the_bounds_keep_their_order_in_the_lectures_cases(rng):
    assert order_violation(rng) <= 1e-10


def test_no_check_passes_on_nan_and_infinite_bounds_are_kept():
    assert worst([0.0, np.array([1.0, np.nan])]) == np.inf
    assert excess([1.0, np.inf], [2.0, np.inf]) == 0
    assert excess([1.0, np.nan], [2.0, 2.0]) == np.inf
    assert excess([3.0, 1.0], [2.0, 2.0]) == 1


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (1, "1"),
        (-0.25, "−0.25"),
        (12345.6, "12\u202f346"),
        (1e-10, "10⁻¹⁰"),
        (-2.5e-16, "−2.5\u202f×\u202f10⁻¹⁶"),
        (0.00012345, "0.000123"),
        (np.inf, "∞"),
        (9.999e-5, "0.0001"),
    ],
)
def test_numbers_are_written_for_reading(value, text):
    assert number(value) == text


# The page


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """What `surefoot lecture --json` prints."""
    out = tmp_path_factory.mktemp("lecture") / "page"
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        assert cli.main(["lecture", "--json", "--out", str(out)]) == 0
    return json.loads(printed.getvalue())


@pytest.fixture(scope="module")
def page(told):
    return Path(told["page"]).read_text(encoding="utf-8")


class Reader(HTMLParser):
    """Follows every element from its start to its end, and remembers what it saw."""

    VOID = frozenset({"meta", "br", "img", "link", "input", "hr", "wbr"})

    def __init__(self):
        super().__init__()
        self.open, self.elements, self.faults = [], [], []

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        if tag in self.VOID:
            return
        if not self.open or self.open.pop() != tag:
            self.faults.append((tag, self.getpos()))


@pytest.fixture(scope="module")
def read(page):
    reader = Reader()
    reader.feed(page)
    reader.close()
    return reader


def test_the_command_tells_every_claim_and_confirms_it(told):
    assert set(told) == {"page", "seconds", "claims"}
    assert [claim["number"] for claim in told["claims"]] == list(range(1, 28))
    for claim in told["claims"]:
        assert set(claim) == {"number", "claim", "verdict", "residual", "tolerance", "holds"}
        assert claim["holds"] is True
        assert claim["residual"] <= claim["tolerance"]
    assert told["seconds"] > 0


def test_the_page_is_well_formed(read):
    assert read.faults == []
    assert read.open == []
    identifiers = [a["id"] for _, a in read.elements if "id" in a]
    assert len(identifiers) == len(set(identifiers))
    for _, attributes in read.elements:
        target = attributes.get("href", "")
        assert target.startswith("#") or not target
        assert not target or target[1:] in identifiers
        for reference in (attributes.get("aria-labelledby"), attributes.get("xlink:href", "#")[1:] or None):
            assert reference is None or reference in identifiers
        for used in re.findall(r"url\(#([^)]+)\)", attributes.get("clip-path", "") + attributes.get("style", "")):
            assert used in identifiers


def test_the_page_needs_nothing_from_outside(page, read):
    assert "http" not in page
    assert "@import" not in page
    assert not {tag for tag, _ in read.elements} & {"script", "link", "iframe", "img", "object", "embed", "image"}
    assert not [a for _, a in read.elements if "src" in a]


def test_the_page_has_every_claim_and_every_figure_with_a_text_alternative(read):
    claims = [a["id"] for tag, a in read.elements if tag == "article"]
    assert claims == [f"claim-{n}" for n in range(1, 28)]
    figures = [a for tag, a in read.elements if tag == "svg"]
    assert len(figures) == 8
    for attributes in figures:
        assert attributes["role"] == "img"
        assert len(attributes["aria-label"]) > 80
    assert sum(tag == "figure" for tag, _ in read.elements) == 8


def test_headings_descend_without_a_gap_and_scrolling_boxes_can_be_reached_by_keyboard(read):
    levels = [int(tag[1]) for tag, _ in read.elements if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(later <= earlier + 1 for earlier, later in pairwise(levels))
    boxes = [a for _, a in read.elements if a.get("class") == "scroll"]
    assert len(boxes) == 10
    assert all(a["tabindex"] == "0" and a["role"] == "region" and a["aria-label"] for a in boxes)


def test_formulas_are_typeset_and_the_page_says_what_it_was_computed_from(page, read):
    assert sum(tag == "math" for tag, _ in read.elements) > 100
    assert "from seed 0" in page
    assert "not confirmed" not in page
    assert "27 of 27" in page


# The map from the theory to the code


def lecture_map():
    spec = importlib.util.spec_from_file_location("lecture_map", DOCUMENTS / "lecture_map.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_link_of_the_map_is_at_its_line():
    text = (DOCUMENTS / "lecture.md").read_text(encoding="utf-8")
    rows = list(lecture_map().ROW.finditer(text))
    # One row for each link: none is written in a form that the script would pass by.
    assert len(rows) == len(re.findall(r"\]\(\.\./", text)) > 150
    for row in rows:
        lines = (DOCUMENTS / row["path"]).read_text(encoding="utf-8").splitlines()
        code = row["code"].replace("\\|", "|")
        assert code in lines[int(row["line"]) - 1], f"{row['path']} moved: run python docs/lecture_map.py"


def test_the_map_names_every_claim_bound_and_worked_case():
    text = (DOCUMENTS / "lecture.md").read_text(encoding="utf-8")
    for claim in CLAIMS:
        assert re.search(rf"^\| {claim.number}\b", text, re.MULTILINE), claim.number
    for bound in guarantees.CATALOGUE:
        assert f"`{bound.id}`: " in text
    for case in range(1, 7):
        assert re.search(rf"^\| {case}[,:]", text[text.index("## Worked cases") :], re.MULTILINE)


def test_the_map_fails_loudly_where_a_snippet_is_gone_or_ambiguous(tmp_path):
    (tmp_path / "code.py").write_text("one\ntwo\ntwo\n")
    row = "| what | [code.py#L7](code.py#L7) | `{}` |"
    refreshed = lecture_map().refreshed
    assert refreshed(row.format("one"), tmp_path) == "| what | [code.py#L1](code.py#L1) | `one` |"
    with pytest.raises(ValueError, match="nowhere"):
        refreshed(row.format("three"), tmp_path)
    with pytest.raises(ValueError, match="lines 2, 3"):
        refreshed(row.format("two"), tmp_path)
