# ruff: noqa: RUF001 - texts hold mathematics
"""The lecture as one self-contained HTML page: no script, no address outside, formulas as MathML."""

from __future__ import annotations

import html
import importlib.resources
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import NamedTuple

from latex2mathml.converter import convert

from surefoot.bounds import CATALOGUE
from surefoot.lecture.chapters import CHAPTERS, Chapter
from surefoot.lecture.figures import Drawn
from surefoot.lecture.guarantees import Measured
from surefoot.lecture.statement import Result, number


class Lecture(NamedTuple):
    """Everything that was computed for the page.

    Attributes:
        results: every claim's, by number.
        figures: every chapter's, by its anchor.
        bounds: what the bounds did, by discount factor and id.
        seed: of everything random.
        seconds: what it all took.
        versions: of what it was computed with, by name.
    """

    results: Mapping[int, Result]
    figures: Mapping[str, Sequence[Drawn]]
    bounds: Mapping[float, Mapping[str, Measured]]
    seed: int
    seconds: float
    versions: Mapping[str, str]


NOTATION = (
    (r"\pi,\; \pi'", "the old policy and the new one; in the lecture $\\pi_\\theta$ and $\\pi_{\\theta'}$"),
    (r"p_t,\; p'_t", "law of the state after $t$ transitions under either; $p_0 = \\mu$"),
    (
        r"d",
        "$(1-\\gamma)\\sum_t \\gamma^t p_t$, the discounted visitation of $\\pi$, which sums to 1; $d'$ is that of "
        "$\\pi'$",
    ),
    (r"J(\pi)", "$\\langle \\mu, V^\\pi \\rangle$, the discounted return, not normalised"),
    (r"\bar A(s)", "$\\sum_a \\pi'(a|s) A^\\pi(s,a)$, what the new policy's action promises in $s$"),
    (r"L(\pi')", "$\\langle d, \\bar A \\rangle/(1-\\gamma)$, the surrogate gain"),
    (r"TV(p,q)", "half the $L_1$ distance, between 0 and 1"),
    (r"KL(p\|q)", "in nats; $KL(\\pi\\|\\pi')$ is that from the old policy to the new"),
    (r"E", "$\\gamma/(1-\\gamma)$ where it multiplies; $E_p[\\cdot]$ is a mean under $p$"),
    (r"g,\; F", "gradient of the surrogate and Fisher matrix, both averaged over $d$"),
)


@cache
def formula(latex: str, display: str = "inline") -> str:
    """LaTeX as a MathML element."""
    # Names of several letters are upright; LaTeX would set them as products.
    latex = re.sub(r"(?<![\\A-Za-z])(TV|KL|Var|mistake|span|max|old|new)(?![A-Za-z])", r"\\mathrm{\1}", latex)
    markup = convert(latex, display=display).replace(' xmlns="http://www.w3.org/1998/Math/MathML"', "")
    # A prime is raised already; as an exponent it would be raised twice, and small.
    markup = re.sub(rf"<msup>({_LETTER}){_PRIME}</msup>", r"<mrow>\1<mo>′</mo></mrow>", markup)
    return re.sub(rf"<msubsup>({_LETTER})(.*?){_PRIME}</msubsup>", r"<msub><mrow>\1<mo>′</mo></mrow>\2</msub>", markup)


_LETTER = r"<mi>[^<]*</mi>"
_PRIME = "<mi>&#x02032;</mi>"


def prose(text: str) -> str:
    """Plain text with $formulas$ and `code` as HTML."""
    parts = re.split(r"(\$[^$]+\$[.,;:)]*|`[^`]+`)", text)
    return "".join(_part(part) for part in parts)


def _part(part: str) -> str:
    if len(part) > 1 and part[0] == "$":
        latex, _, after = part[1:].partition("$")
        # No line may begin with the comma behind a formula.
        return f'<span class="tied">{formula(latex)}{after}</span>' if after else formula(latex)
    if len(part) > 1 and part[0] == part[-1] == "`":
        return f"<code>{html.escape(part[1:-1])}</code>"
    return html.escape(part)


def codes(names: Iterable[str]) -> str:
    """Names of functions, without the package's own."""
    return " ".join(f"<code>{_breakable(name.removeprefix('surefoot.'))}</code>" for name in names)


def _breakable(name: str) -> str:
    """A name that may go on in the next line behind a dot or an underscore."""
    return re.sub(r"([._])", r"\1<wbr>", html.escape(name))


def verdict(result: Result) -> str:
    """The verdict's badge."""
    word = result.claim.verdict
    return f'<span class="verdict {word}">{word}</span>'


def kept(result: Result) -> str:
    """Whether the exact statement was confirmed, in words."""
    return '<span class="kept">confirmed</span>' if result.holds else '<span class="kept missed">not confirmed</span>'


def claim_card(result: Result) -> str:
    """One claim: the lecture's version, the exact one, what was measured."""
    claim, evidence = result.claim, result.evidence
    anchor = f"claim-{claim.number}"
    condition = f' <span class="condition">{prose(claim.condition)}</span>' if claim.condition else ""
    findings = "".join(f"<li>{prose(finding)}</li>" for finding in evidence.findings)
    return f"""<article class="claim" id="{anchor}" aria-labelledby="{anchor}-title">
<h3 id="{anchor}-title"><span class="number">{claim.number}</span>{html.escape(claim.title)}</h3>
<p>{verdict(result)}{condition}</p>
<div class="part"><h4>The lecture</h4><div><div class="formula">{formula(claim.formula, "block")}</div>
<p>{prose(claim.said)}</p></div></div>
<div class="part"><h4>Exactly</h4><div><div class="formula">{formula(claim.exact_formula, "block")}</div>
<p>{prose(claim.exactly)}</p></div></div>
<div class="part"><h4>Measured</h4><ul>{findings}</ul></div>
<p class="note">{kept(result)} · residual {number(evidence.residual, 2)}, tolerance {number(claim.tolerance, 2)} ·
{codes(claim.functions)}</p>
</article>"""


def figure_block(drawn: Drawn, results: Mapping[int, Result], index: int) -> str:
    """A figure in its own scrolling box, with what it shows and which claims that concerns."""
    about = "; ".join(
        f'<a href="#claim-{n}">claim {n}</a> {html.escape(results[n].claim.title)}: {verdict(results[n])} '
        f"residual {number(results[n].evidence.residual, 2)}"
        for n in drawn.claims
    )
    return f"""<figure id="figure-{index}">
<div class="scroll" tabindex="0" role="region" aria-label="Figure {index}">{drawn.svg}</div>
<figcaption><strong>Figure {index}. {html.escape(drawn.title)}.</strong> {prose(drawn.text)}
<span class="condition">Computed by {codes(drawn.functions)}. {about}.</span></figcaption>
</figure>"""


def summary_table(results: Iterable[Result]) -> str:
    """Every claim in a row."""
    rows = "".join(
        f'<tr><td class="figure"><a href="#claim-{r.claim.number}">{r.claim.number}</a></td>'
        f'<th scope="row">{html.escape(r.claim.title)}</th>'
        f'<td>{verdict(r)}<br><span class="condition">{prose(r.claim.condition)}</span></td>'
        f'<td class="figure">{number(r.evidence.residual, 2)}</td>'
        f'<td class="figure">{number(r.claim.tolerance, 2)}</td><td>{kept(r)}</td>'
        f"<td>{codes(r.claim.functions)}</td></tr>"
        for r in results
    )
    return f"""<div class="scroll" tabindex="0" role="region" aria-label="All claims">
<table><caption>The verdict is on the lecture's version. The residual is by how much the exact statement was missed at
worst in this run, relative to the scale of what was compared; a bound that was kept has 0.</caption>
<thead><tr><th scope="col" class="figure">No.</th><th scope="col">Claim</th><th scope="col">Verdict</th>
<th scope="col" class="figure">Residual</th><th scope="col" class="figure">Tolerance</th>
<th scope="col">Exact statement</th><th scope="col">Computed by (in surefoot)</th></tr></thead>
<tbody>{rows}</tbody></table></div>"""


def bounds_table(measured: Mapping[float, Mapping[str, Measured]]) -> str:
    """Every bound: its formula, its looseness and what it proves, for each discount factor."""
    heads = "".join(
        f'<th scope="col" class="figure">Penalty / error, γ = {number(discount)}</th>'
        '<th scope="col" class="figure">Proven</th>'
        for discount in measured
    )
    rows = "".join(
        f'<tr><th scope="row"><code>{bound.id}</code></th>'
        + "".join(
            f'<td class="figure">{number(by_id[bound.id].ratio, 2)}</td>'
            f'<td class="figure">{by_id[bound.id].proven:.0%}</td>'
            for by_id in measured.values()
        )
        + f"<td>{html.escape(bound.source)}</td></tr>"
        for bound in CATALOGUE
        if all(bound.id in by_id for by_id in measured.values())
    )
    return f"""<div class="scroll" tabindex="0" role="region" aria-label="The bounds, measured">
<table><caption>Natural steps of KL {number(1e-4)} in 60 Garnet MDPs for each γ: the median of what a bound subtracts
over the error |L − gain| that the surrogate made, and the share of steps that it proves to improve the policy. In
the formulas g is γ, a(s) the TV of the policies in s, am its maximum, E = g/(1−g). Rewards here have both signs, so
<code>lecture</code> does not apply; its numbers are what it would say.</caption>
<thead><tr><th scope="col">Bound</th>{heads}<th scope="col">What it subtracts, times 1−g</th></tr></thead>
<tbody>{rows}</tbody></table></div>"""


def chapter_section(chapter: Chapter, lecture: Lecture, first_figure: int) -> str:
    """One chapter: words, figures, claims."""
    words = "".join(f"<p>{prose(paragraph)}</p>" for paragraph in chapter.text)
    drawn = "".join(
        figure_block(figure, lecture.results, first_figure + place)
        for place, figure in enumerate(lecture.figures[chapter.anchor])
    )
    table = bounds_table(lecture.bounds) if chapter.anchor == "bounds" else ""
    cards = "".join(claim_card(lecture.results[claim.number]) for claim in chapter.claims)
    return (
        f'<section id="{chapter.anchor}" aria-labelledby="{chapter.anchor}-title">'
        f'<h2 id="{chapter.anchor}-title">{html.escape(chapter.title)}</h2>{words}{table}{drawn}{cards}</section>'
    )


def render(lecture: Lecture) -> str:
    """The whole page."""
    results = [lecture.results[n] for n in sorted(lecture.results)]
    confirmed = sum(result.holds for result in results)
    counts = {word: sum(r.claim.verdict == word for r in results) for word in ("right", "wrong")}
    contents = "".join(
        f'<li><a href="#{anchor}">{html.escape(title)}</a></li>'
        for anchor, title in [
            ("summary", "All claims"),
            ("notation", "Notation"),
            *((chapter.anchor, chapter.title) for chapter in CHAPTERS),
        ]
    )
    sections, first = [], 1
    for chapter in CHAPTERS:
        sections.append(chapter_section(chapter, lecture, first))
        first += len(lecture.figures[chapter.anchor])
    notation = "".join(f"<dt>{formula(symbol)}</dt><dd>{prose(meaning)}</dd>" for symbol, meaning in NOTATION)
    used = ", ".join(f"{html.escape(name)} {html.escape(version)}" for name, version in lecture.versions.items())
    style = importlib.resources.files("surefoot.lecture").joinpath("style.css").read_text(encoding="utf-8")
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>From policy iteration to TRPO: every claim, run</title>
<style>{style}</style>
</head>
<body>
<a class="skip" href="#main">Skip to the lecture</a>
<div class="page">
<header>
<h1>From policy iteration to TRPO</h1>
<p class="lead">The lecture on trust regions makes {len(results)} claims. Each is stated here as it is taught, then
exactly, and was run on finite MDPs in which everything can be computed.</p>
<p>As taught, {counts["right"]} are right (some under a condition), {counts["wrong"]} are wrong, and the others need a
qualification. The exact statements: {confirmed} of {len(results)} confirmed. Every number and figure on this page was
computed by this run of <code>surefoot lecture</code>, in {lecture.seconds:.0f} seconds, from seed {lecture.seed}.</p>
</header>
<nav aria-labelledby="contents"><h2 id="contents">Contents</h2><ol>{contents}</ol></nav>
<main id="main">
<section id="summary" aria-labelledby="summary-title"><h2 id="summary-title">All claims</h2>
{summary_table(results)}</section>
<section id="notation" aria-labelledby="notation-title"><h2 id="notation-title">Notation</h2>
<p>Distances are half the {formula("L_1")} distance throughout; the lecture's are now the one, now the other, which is
where several of its factors of 2 come from. Random cases are Garnet MDPs of 8 states, 3 actions and 3 successors unless
said otherwise.</p>
<dl class="notation">{notation}</dl></section>
{"".join(sections)}
</main>
<footer><p>Computed with {used}. The lecture is Levine's on advanced policy gradients (CS285, lecture 9). Sources:
Kakade and Langford 2002; Kakade 2001; Pirotta et al. 2013; Schulman et al. 2015 and 2017; Achiam et al. 2017; Agarwal
et al. 2021.</p></footer>
</div>
</body>
</html>
"""
