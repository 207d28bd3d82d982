# ruff: noqa: RUF001 - numbers are written with a true minus
"""`surefoot report`: one page that holds everything, reads everywhere, and renders whatever a run left."""

import json
import os
import re
import shutil
from html.parser import HTMLParser
from itertools import pairwise

import numpy as np
import pytest
from playwright.sync_api import sync_playwright

from surefoot import cli
from surefoot.errors import RunError
from surefoot.report.page import write_report
from surefoot.report.runs import letters, number, share
from surefoot.report.scales import FEW, Scale, fit, kept

FIGURES = ["learning", "movement", "gains", "bounds", "policy", "critic"]
CONFIG = {
    "environment": "Pendulum-v1",
    "rule": "trpo",
    "trust_region": "kl",
    "rule_settings": {"radius": 0.01, "damping": 0.1, "standardise": True},
    "steps": 100_000,
    "seed": 0,
    "envs": 64,
    "horizon": 32,
    "discount": 0.99,
    "gae_lambda": 0.95,
    "state_weighting": "undiscounted",
    "holdout": 0.2,
    "guard": True,
    "hidden": [64, 64],
    "versions": {"surefoot": "0.1.0", "jax": "0.10.2"},
}


def fake_rows(updates, seed=0):
    """Rows as a run of a Gaussian policy writes them, every kind of update among them."""
    rng = np.random.default_rng(seed)
    return [fake_row(update, updates, rng) for update in range(1, updates + 1)]


def fake_row(update, updates, rng):
    done = update / updates
    refused, undone = rng.random() < 0.06, rng.random() < 0.03
    predicted = 0.0098
    kl = 0.0 if refused else predicted * rng.lognormal(0, 0.12)
    promised = 0.0 if refused else 12 * np.exp(-3 * done) * rng.lognormal(0, 0.3)
    realised = promised * 0.7 + rng.normal(0, 4)
    known = not refused and update < updates and rng.random() > 0.05
    width = 6 + 4 * rng.random()
    best = promised - 10 ** rng.uniform(0.5, 4) * (1.1 - done)
    mean = -1200 + 1000 * (1 - np.exp(-4 * done)) + rng.normal(0, 25)
    bounded = rng.random() > 0.1
    return {
        "update": update,
        "steps": update * 2048,
        "seconds": update * 0.5,
        "experience": 2048,
        "collect_seconds": 0.2 + 0.02 * rng.random(),
        "update_seconds": 0.13,
        "critic_seconds": 0.05,
        "certify_seconds": 0.08,
        "episodes": 10,
        "return_mean": None if update == 1 else mean,
        "return_std": None if update == 1 else 300 * np.exp(-2 * done),
        "return_min": None if update == 1 else mean - 400,
        "return_max": None if update == 1 else mean + 200,
        "length_mean": 200.0,
        "radius": 0.01,
        "accepted": not refused,
        "scale": 1.0,
        "predicted_gain": 0.12,
        "surrogate_gain": 0.0 if refused else 0.11,
        "predicted_kl": predicted,
        "kl": kl,
        "reverse_kl": kl,
        "max_kl": kl * 8,
        "tv": 0.05,
        "max_tv": 0.2,
        "kl_ratio": None if refused else kl / predicted,
        "gain_ratio": None if refused else 0.93,
        "promised_gain": promised,
        "realised_gain": realised if known else None,
        "realised_gain_lower": realised - width if known else None,
        "realised_gain_upper": realised + width if known else None,
        "realised_gain_reason": None if known else "refused" if refused else "no episode ended in the next batch",
        "held_out_gain": promised * 0.8,
        "held_out_gain_lower": promised * 0.4,
        "held_out_gain_upper": promised * 1.2,
        "estimated_bounds": {"tv": best - 1, "kl": best} if bounded else None,
        "estimated_bounds_reason": None if bounded else "fewer than 30 effective rows",
        "estimated_bounds_rows": 400.0,
        "best_bound": ("kl" if rng.random() > 0.3 else "tv") if bounded else None,
        "best_bound_lower": best if bounded else None,
        "vacuous": bool(best < -300) if bounded else None,
        "undone": bool(undone),
        "entropy": 1.4 - 2 * done + 0.02 * rng.normal(),
        "smallest_std": float(np.exp(-0.5 - 1.5 * done)),
        "effective_sample_size": 1900.0,
        "step_length": 0.3,
        "backtracks": int(rng.integers(0, 3)),
        "solver_iterations": 10,
        "solver_residual": 0.01,
        "multiplier": 1.5,
        "multiplier_path": [1.5],
        "explained_variance": -8.0 if update == 1 else 0.9 - 0.8 * np.exp(-6 * done) + 0.03 * rng.normal(),
        "loss": 0.1 + np.exp(-5 * done) * rng.lognormal(0, 0.1),
        "value_mean": -100.0,
        "target_mean": -100.0,
        "target_std": 50.0,
        "first_ratio_error": 1e-6,
        "action_saturation": 0.05,
        "normaliser_kl": 1e-4,
        "reward_mean": -5.0,
        "reward_std": 3.0,
        "reward_largest": 16.0,
        "terminations": 0,
        "truncations": 10,
    }


def make_run(folder, rows, *, evaluation=True, **settings):
    """A run's folder with these rows."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(CONFIG | settings))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if evaluation:
        told = {"return": {"mean": -182.4, "std": 91.3, "episodes": 20}, "length": {"mean": 200.0}, "repeatable": True}
        (folder / "evaluation.json").write_text(json.dumps(told))
    return folder


class Elements(HTMLParser):
    """What a page holds: its elements' names and attributes, and its text outside of scripts and styles."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.open, self.words = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in {"meta", "link", "br", "wbr"}:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in {"script", "style"}:
            self.words.append(data)

    @property
    def text(self):
        return re.sub(r"[ \n]+", " ", " ".join(self.words))


def page_of(*runs, file=None):
    """The page of these runs, well formed, with every figure and no number that the browser cannot read."""
    text = write_report(runs, file).read_text(encoding="utf-8")
    page = Elements(text)
    assert not page.open
    found = [attributes["id"] for tag, attributes in page.elements if tag == "figure"]
    assert sorted(found) == sorted([*FIGURES, "time"])
    shapes = [value for _, attributes in page.elements for name, value in attributes.items() if name in ("d", "style")]
    assert not [shape for shape in shapes if re.search(r"nan|inf\b", shape or "")]
    identifiers = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(identifiers) == len(set(identifiers))
    for _, attributes in page.elements:
        for name in ("aria-labelledby", "aria-describedby"):
            assert set((attributes.get(name) or "").split()) <= set(identifiers)
    return page, text


def data_of(text):
    """What the page's script reads, by figure."""
    found = re.findall(
        r'<figure id="(\w+)"(?:(?!</figure>).)*?<script type="application/json">(.*?)</script>', text, re.S
    )
    return {name: json.loads(data, parse_constant=pytest.fail) for name, data in found}


# The page as text


def test_the_page_needs_nothing_but_itself(tmp_path):
    run = make_run(tmp_path / "run", fake_rows(40))
    page, text = page_of(run)
    assert (run / "report.html").exists()
    assert "://" not in text
    assert not [attributes for _, attributes in page.elements if "src" in attributes]
    links = [attributes["href"] for _, attributes in page.elements if "href" in attributes]
    assert all(link.startswith(("#", "data:")) for link in links)
    assert write_report([run]).read_text() == text


def test_the_summary_and_the_figures_say_what_the_run_recorded(tmp_path):
    rows = fake_rows(50)
    for row in rows:
        row.update(accepted=True, undone=False, kl=0.009, realised_gain_reason=None, estimated_bounds_reason=None)
        row.update(promised_gain=2.0, realised_gain=1.0, realised_gain_lower=0.5, realised_gain_upper=1.5)
        row.update(best_bound="kl", best_bound_lower=-5.0, vacuous=False, kl_ratio=0.9)
    for row in rows[:3]:
        row.update(accepted=False, kl=0.0, kl_ratio=None, vacuous=None, best_bound=None, best_bound_lower=None)
        row.update(promised_gain=0.0, realised_gain=None, realised_gain_lower=None, realised_gain_upper=None)
        row.update(realised_gain_reason="refused", estimated_bounds_reason="no step")
    for row in rows[10:14]:
        row.update(realised_gain=-2.0, realised_gain_lower=-3.0, realised_gain_upper=-1.0, vacuous=True)
    for row in rows[20:22]:
        row.update(kl=0.03, undone=True)
    text = page_of(make_run(tmp_path / "run", rows))[0].text
    assert "−182.4 ± 91.3" in text
    assert "50 updates: 3 refused, 2 undone, 2 left the trust region, 4 of 47 measured lowered the return" in text
    assert "45 updates promised 90 and realised 33 in sum; of 47 with an interval 4 lowered the return" in text
    assert "vacuous in 8.5\u202f% of the 47 updates that have one, above 0 in 0; 3 of 50 updates have none" in text
    assert re.search(r"Which estimated bound was the best.* kl 47 94\u202f%", text)
    assert re.search(r"Why no bound was estimated.* no step 3 6\u202f%", text)
    assert "the largest KL was 0.03 nats; the median of real over predicted KL is 0.9" in text


def test_whatever_a_run_names_is_escaped(tmp_path):
    evil = '<script>alert("x")</script>'
    rows = fake_rows(12)
    for row in rows:
        row.update(best_bound=evil, realised_gain_reason=f"{evil}&", estimated_bounds_reason=evil, solver_residual=0.9)
    runs = [make_run(tmp_path / f"{evil.replace('/', '')}{k}", rows, environment=evil, note=evil) for k in (1, 2)]
    _, text = page_of(*runs, file=tmp_path / "page.html")
    assert "<script>alert" not in text
    assert text.count("<script>") == 1
    assert text.count("<script ") == len(FIGURES)


def killed(row):
    return {key: row[key] for key in ("update", "steps", "seconds", "accepted", "kl", "radius", "return_mean")}


def not_finite(row):
    numbers = {key for key, value in row.items() if isinstance(value, float)}
    return row | {key: ("inf", "-inf", "nan")[row["update"] % 3] for key in numbers if (row["update"] + len(key)) % 2}


def huge(row):
    return row | {"return_mean": 1e308 * (-1) ** row["update"], "kl": 1e300, "best_bound_lower": -1e308, "loss": 1e-320}


ODD = {
    "no update": [],
    "one update": fake_rows(1),
    "two updates": fake_rows(2),
    "old keys only": [killed(row) for row in fake_rows(30)],
    "no steps": [{"update": row["update"], "return_mean": 1.0} for row in fake_rows(5)],
    "empty rows": [{}, {}, {}],
    "not finite": [not_finite(row) for row in fake_rows(30)],
    "huge": [huge(row) for row in fake_rows(30)],
    "all null": [dict.fromkeys(row) | {"update": row["update"], "steps": row["steps"]} for row in fake_rows(9)],
    "all refused": [row | {"accepted": False, "kl": 0.0, "kl_ratio": None} for row in fake_rows(20)],
}


@pytest.mark.parametrize("name", ODD)
def test_odd_runs_render(name, tmp_path):
    run = make_run(tmp_path / "run", ODD[name], evaluation=False)
    page, text = page_of(run)
    data_of(text)
    assert "no final evaluation" in page.text
    page_of(run, make_run(tmp_path / "other", fake_rows(20)), file=tmp_path / "both.html")


def test_numbers_that_are_not_finite_are_marked_below_their_panel(tmp_path):
    rows = fake_rows(30)
    for row in rows[3:7]:
        row["kl"] = "inf"
    _, text = page_of(make_run(tmp_path / "run", rows))
    assert re.search(r'<span>not finite</span>.{,400}<span class="count">4</span>', text, re.S)
    assert data_of(text)["movement"]["runs"][0]["lines"][0]["values"][3] == "∞"


def test_a_torn_last_line_and_an_empty_configuration_render(tmp_path):
    run = make_run(tmp_path / "run", fake_rows(20), evaluation=False)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"update": 21, "ste')
    (run / "config.json").write_text("{}")
    page, _ = page_of(run)
    assert "20 updates" in page.text
    assert "not recorded" in page.text


@pytest.mark.parametrize(("region", "lines"), [("kl", ["KL", "radius"]), ("euclidean", ["KL"]), ("none", ["KL"])])
def test_only_a_radius_of_the_kl_is_drawn(region, lines, tmp_path):
    page, _ = page_of(make_run(tmp_path / "run", fake_rows(20), trust_region=region))
    assert (" radius " in page.text.partition("Movement against")[2].partition("KL as measured")[0]) == (len(lines) > 1)
    assert ("left the trust region" in page.text) == (region == "kl")


def test_several_runs_are_told_apart_without_colour_and_their_differences_marked(tmp_path):
    runs = [make_run(tmp_path / name, fake_rows(20 + k, k), seed=k) for k, name in enumerate("xyz")]
    page, text = page_of(*runs, file=tmp_path / "report.html")
    dashes = set(re.findall(r'<path class="line" d="M0 5H28" stroke="var\(--\w+\)"( stroke-dasharray="[^"]+")?', text))
    assert len(dashes) == 3
    assert "3 runs side by side" in page.text
    assert {"A", "B", "C"} <= set(page.text.split())
    assert text.count('class="differs"') == 1
    assert "18 settings, 1 of them not the same in all runs" in page.text
    assert [len(figure["runs"]) for figure in data_of(text).values()] == [3] * len(FIGURES)


def test_five_thousand_updates_keep_their_extremes_and_stay_small(tmp_path):
    rows = fake_rows(5_000)
    rows[2_345]["kl"], rows[3_456]["return_mean"] = 7.0, 9_999.0
    run = make_run(tmp_path / "run", rows)
    page, text = page_of(run)
    assert len(text.encode()) < 1_500_000
    data = data_of(text)
    assert 7.0 in data["movement"]["runs"][0]["lines"][0]["values"]
    assert 9_999.0 in data["learning"]["runs"][0]["lines"][0]["values"]
    assert "of 5\u202f000 updates are drawn" in page.text
    assert all(text.count("<tr>", *span(text, name)) <= 60 for name in FIGURES)


def span(text, name):
    start = text.index(f'<figure id="{name}"')
    return start, text.index("</figure>", start)


# Scales and numbers


def test_few_updates_are_all_drawn_and_of_many_the_extremes(rng):
    few = rng.normal(size=FEW)
    assert len(kept([few])) == FEW
    many = rng.normal(size=20 * FEW)
    many[rng.integers(0, many.size, 100)] = np.nan
    places = kept([many, -many])
    assert len(places) < FEW
    assert {0, many.size - 1, np.nanargmin(many), np.nanargmax(many)} <= set(places.tolist())
    assert len(kept([np.full(2 * FEW, np.nan)])) < FEW


@pytest.mark.parametrize(
    "values",
    [[0.0], [1e-300, 2e-300], [-1e308, 1e308], [1e6, 1e6 + 1e-4], [np.inf, np.nan], [0.0, 0.0, 1e9, 1.0, 2.0]],
)
@pytest.mark.parametrize("wide", [False, True])
def test_a_scale_holds_its_values_and_has_few_ticks(values, wide):
    scale = fit(np.array(values), wide=wide)
    places = scale.place(np.array(values))[np.isfinite(values)]
    assert ((places >= 0) & (places <= 1)).all()
    ticks = scale.ticks()
    assert 1 <= len(ticks) <= 9
    assert ticks == sorted(ticks)


def test_far_values_bend_a_wide_axis_only():
    values = np.array([*np.linspace(0.9, 1.1, 50), 1000.0])
    assert fit(values) == Scale(0.0, 1049.955, np.inf)
    usual = fit(values, wide=True).place(np.array([0.9, 1.1]))
    assert usual[1] - usual[0] > 50 * (0.2 / 1000)


def test_numbers_are_for_reading():
    told = [number(value) for value in (0, 1234.5, -0.012345, 1e-7, -2.5e12, np.inf, -np.inf, None, 0.99996)]
    told.append(number(12_345_678, 12))
    assert told == ["0", "1\u202f234", "−0.0123", "1·10⁻⁷", "−2.5·10¹²", "∞", "−∞", "–", "1", "12\u202f345\u202f678"]
    assert [share(0, 9), share(9, 9), share(1, 10**6), share(10**6 - 1, 10**6), share(0, 0)] == [
        "0\u202f%",
        "100\u202f%",
        "0.1\u202f%",
        "99.9\u202f%",
        "–",
    ]
    assert [letters(1), letters(2), letters(28)[-2:]] == [[""], ["A", "B"], ["A2", "B2"]]


# The command


def test_the_command_says_where_the_page_is(tmp_path, capsys, monkeypatch):
    one, two = (make_run(tmp_path / name, fake_rows(9)) for name in "ab")
    assert cli.main(["report", str(one)]) == 0
    assert capsys.readouterr().out == f"report  {one}/report.html\n"
    monkeypatch.chdir(tmp_path)
    assert cli.main(["report", str(one), str(two), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"report": "report.html"}
    target = tmp_path / "new" / "page.html"
    for _ in range(2):
        assert cli.main(["report", str(one), "--out", str(target)]) == 0
    assert [path.name for path in target.parent.iterdir()] == ["page.html"]


def test_what_cannot_be_read_or_written_is_one_line_and_2(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = make_run(tmp_path / "run", fake_rows(3))
    broken = make_run(tmp_path / "broken", [{"update": 1, "steps": 1, "kl": {"no": "number"}}])
    files = (str(tmp_path), ".", "", f"{run}/config.json/page.html")
    for words in (["none"], [str(broken)], *([str(run), "--out", file] for file in files)):
        assert cli.main(["report", *words]) == 2
        told = capsys.readouterr()
        assert told.out == ""
        assert told.err.startswith("surefoot: ")
        assert told.err.count("\n") == 1
    assert not list(tmp_path.glob(".*"))
    with pytest.raises(RunError, match="at least one"):
        write_report([])


# The page in a browser


@pytest.fixture(scope="module")
def browser():
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if path is None:
        missing = "chromium, chromium-browser or google-chrome is not on the PATH"
        # `.ci/run` installs it and says so; a user without a browser still has a suite that passes.
        if os.environ.get("SUREFOOT_BROWSER_REQUIRED"):
            pytest.fail(missing)
        pytest.skip(missing)
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield running
        running.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """A page of one run, one of several, one of odd ones."""
    folder = tmp_path_factory.mktemp("pages")
    one = make_run(folder / "one", fake_rows(60), environment="a-rather-long/Environment<script>Name-v5" * 2)
    two = make_run(folder / "two", fake_rows(40, 1), seed=1, rule="pg", trust_region="euclidean", evaluation=False)
    odd = [make_run(folder / name, ODD[name], evaluation=False) for name in ("no update", "one update", "not finite")]
    return {
        "one": write_report([one]),
        "several": write_report([one, two], folder / "several.html"),
        "odd": write_report(odd, folder / "odd.html"),
    }


@pytest.fixture
def visit(browser, pages):
    """Opens a page; in the end nothing was said on the console and nothing asked for but the file."""
    seen, contexts = [], []

    def opened(name, width=1280, scheme="light"):
        contexts.append(browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme))
        page = contexts[-1].new_page()
        address = pages[name].as_uri()
        page.on("console", lambda message: seen.append(message.text))
        page.on("pageerror", lambda error: seen.append(str(error)))
        page.on("request", lambda request: request.url == address or seen.append(request.url))
        page.goto(address)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert seen == []


@pytest.mark.parametrize("name", ["one", "several", "odd"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_width_makes_the_page_scroll_sideways(name, scheme, visit):
    page = visit(name, scheme=scheme)
    page.evaluate("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
    for width in (360, 768, 1280, 1920):
        page.set_viewport_size({"width": width, "height": 900})
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), width
        # Nor does it squeeze a name into a column of letters.
        assert page.locator("tbody tr").evaluate_all("(rows) => Math.max(...rows.map((row) => row.clientHeight))") < 200


CONTRAST = """() => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const light = (colour) => {
    canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
    const parts = [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3).map((v) => v / 255);
    const [r, g, b] = parts.map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const under = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const colour = getComputedStyle(at).backgroundColor;
      if (!/, 0\\)|\\/ 0\\.|transparent/.test(colour)) return colour;
    }
    return "white";
  };
  const worst = [];
  for (const element of document.querySelectorAll("body *:not(script):not(svg *)")) {
    if (![...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim())) continue;
    const [a, b] = [light(getComputedStyle(element).color), light(under(element))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) worst.push([element.className, element.textContent.slice(0, 30), ratio]);
  }
  return worst;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_has_contrast(scheme, visit):
    assert visit("several", scheme=scheme).evaluate(CONTRAST) == []


def reading(plot):
    return plot.locator(".readout").inner_text()


def test_pointing_at_a_figure_shows_the_values_there(visit):
    page = visit("one")
    rows = fake_rows(60)
    plot = page.locator("#movement .plot")
    assert "update 60" in reading(plot)
    area = plot.locator(".area").first
    box = area.bounding_box()
    for place in (0, 29, 59):
        area.hover(position={"x": min(box["width"] * place / 59, box["width"] - 1), "y": 50})
        told = reading(plot)
        assert f"update {place + 1}," in told
        assert f"KL {number(rows[place]['kl'], 4)}" in told
        assert ("refused" in told) == (not rows[place]["accepted"])
    assert float(plot.locator(".cross").first.evaluate("(cross) => getComputedStyle(cross).opacity")) > 0
    page.mouse.move(2, 2)
    assert float(plot.locator(".cross").first.evaluate("(cross) => getComputedStyle(cross).opacity")) == 0


def test_the_page_writes_numbers_as_the_report_does(visit):
    values = [0, 1, -1, 0.1, 1234.6, 12345.6, 999999, 1e7, 2.5e12, -3.14159e-7, 0.00012346, 0.5, 1e-320]
    assert visit("one").evaluate("(values) => values.map(shown)", values) == [number(value, 4) for value in values]


def test_the_keyboard_reaches_every_figure_and_reads_it(visit):
    page = visit("several")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    reached = []
    for _ in range(80):
        page.keyboard.press("Tab")
        name = page.evaluate("document.activeElement.matches('.plot') ? document.activeElement.parentElement.id : ''")
        if not name:
            continue
        if name in reached:
            break
        reached.append(name)
        plot = page.locator(f"#{name} .plot")
        assert plot.evaluate("(plot) => getComputedStyle(plot).outlineStyle") == "solid"
        keys = ["ArrowLeft", "PageUp", "Home", "ArrowRight", "PageDown", "End"] if name == "gains" else ["ArrowLeft"]
        told = [reading(plot)]
        for key in keys:
            page.keyboard.press(key)
            told.append(reading(plot))
        assert "ended" in told[0]
        updates = [int(re.search(r"update (\d+)", text)[1]) for text in told]
        assert updates == [60, 59, 49, 1, 2, 12, 60][: len(updates)]
    assert sorted(reached) == sorted(FIGURES)


def test_every_figure_has_a_name_and_says_what_it_shows(visit):
    page = visit("one")
    tree = page.locator("main").aria_snapshot()
    for title in ("Learning curve", "Promised and realised gain", "Estimated bounds on the gain", "Critic"):
        assert f'application "{title}"' in tree
    for name in FIGURES:
        plot = page.locator(f"#{name} .plot")
        assert plot.get_attribute("aria-describedby") == f"{name}-found keys"
        assert re.search(r"\d", page.locator(f"#{name}-found").inner_text())
        assert plot.locator("output").get_attribute("aria-live") == "polite"
    assert page.locator("svg[role=img]").count() >= len(FIGURES)
    levels = page.locator("h1, h2, h3, h4").evaluate_all("(found) => found.map((each) => Number(each.tagName[1]))")
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))


def test_reading_moves_nothing(visit):
    page = visit("one", width=360)
    assert any(not row["accepted"] for row in fake_rows(60)[-20:])
    plot = page.locator("#movement .plot")
    heights = plot.evaluate(
        """(plot) => Array.from({ length: 20 }, () => {
             plot.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowLeft" }));
             return plot.getBoundingClientRect().height;
           })"""
    )
    assert "update 40," in reading(plot)
    assert len(set(heights)) == 1
