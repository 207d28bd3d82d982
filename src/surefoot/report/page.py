"""The report of runs as one self-contained HTML page: style and script inside, no address outside."""

from __future__ import annotations

import html
import importlib.resources
import os
from collections.abc import Sequence
from pathlib import Path

from surefoot.errors import RunError, printable
from surefoot.files import cannot_write, write_atomically
from surefoot.history import read
from surefoot.report import summary
from surefoot.report.drawing import draw
from surefoot.report.figures import figures
from surefoot.report.runs import Run, letters

PAGE = "report.html"
"""The page's file in a run's folder."""

SECTIONS = (
    ("glance", "At a glance"),
    ("findings", "The doctor's findings"),
    ("key", "Key figures"),
    ("updates", "Update by update"),
    ("configuration", "Configuration"),
)
"""Anchors and titles of the page's sections."""

KEYS = (
    '<p id="keys" class="keys">Point at a figure, or focus it and press ← → (Page Up, Page Down: ten updates; '
    "Home, End), to read its values.</p>"
)
"""How figures are read, as HTML; they refer to it."""


def write_report(runs: Sequence[str | os.PathLike], file: str | os.PathLike | None = None) -> Path:
    """Write the report of one run, or of several side by side.

    Args:
        runs: the runs' folders, at least one.
        file: where to, replaced in one go; by default report.html in the folder of a single run, else in the
            working directory.

    Returns: the file.

    Raises RunError where a folder holds no run that can be read, or the file cannot be written.
    """
    if not runs:
        raise RunError("a report needs at least one run folder")
    histories = [read(run) for run in runs]
    names = _names([history.path for history in histories])
    shown = [
        Run(history, place, mark, name)
        for place, (history, mark, name) in enumerate(zip(histories, letters(len(histories)), names, strict=True))
    ]
    target = Path(file) if file is not None else (histories[0].path if len(shown) == 1 else Path()) / PAGE
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(target, error) from error
    write_atomically(target, render(shown).encode())
    return target


def _names(folders: Sequence[Path]) -> list[str]:
    """The folders' names; whole paths where two would be the same."""
    names = [printable(folder.resolve().name) for folder in folders]
    return [printable(folder) if names.count(name) > 1 else name for folder, name in zip(folders, names, strict=True)]


def render(runs: Sequence[Run]) -> str:
    """The whole page."""
    blocks = {
        "glance": f'<div class="cards">{"".join(map(summary.card, runs))}</div>',
        "findings": f"<div>{''.join(map(summary.findings, runs))}</div>",
        "key": summary.key_figures(runs),
        "updates": _updates(runs),
        "configuration": summary.configuration(runs),
    }
    return whole(
        "report",
        summary.heading(runs[0]) if len(runs) == 1 else f"{len(runs)} runs",
        _title(runs),
        [(anchor, title, blocks[anchor]) for anchor, title in SECTIONS],
        f"Made by <code>surefoot report</code> from {_sources(runs)}. Every gain, KL and bound here is measured on\n"
        "samples: estimated, not proven.",
    )


def whole(kind: str, what: str, title: str, sections: Sequence[tuple[str, str, str]], footer: str) -> str:
    """A page that needs nothing else.

    Args:
        kind: of page, in a word.
        what: it is of, as text.
        title: of it, as HTML.
        sections: anchor, title and content of each, as HTML.
        footer: as HTML.
    """
    contents = "".join(f'<li><a href="#{anchor}">{name}</a></li>' for anchor, name, _ in sections)
    blocks = "".join(
        f'<section id="{anchor}" aria-labelledby="{anchor}-heading"><h2 id="{anchor}-heading">{name}</h2>'
        f"{block}</section>"
        for anchor, name, block in sections
    )
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:">
<link rel="icon" href="data:,">
<title>{html.escape(what)}: surefoot {kind}</title>
<style>{_asset("page.css")}</style>
</head>
<body>
<a class="skip" href="#main">Skip to the {kind}</a>
<div class="page">
<header><p class="brand">surefoot {kind}</p><h1>{title}</h1></header>
<nav aria-label="Contents"><ol>{contents}</ol></nav>
<main id="main">{blocks}</main>
<footer><p>{footer}</p></footer>
</div>
<script>{_asset("page.js")}</script>
</body>
</html>
"""


def _title(runs: Sequence[Run]) -> str:
    if len(runs) > 1:
        return f"{len(runs)} runs side by side"
    return f"{html.escape(runs[0].setting('environment'))} <span>with {html.escape(runs[0].setting('rule'))}</span>"


def _sources(runs: Sequence[Run]) -> str:
    return ", ".join(f"<code>{html.escape(printable(run.history.path))}</code>" for run in runs)


def _updates(runs: Sequence[Run]) -> str:
    drawn = "".join(draw(figure, runs) for figure in figures(runs))
    kind = "charts many" if len(runs) > 1 else "charts"
    return f'{KEYS}<div class="{kind}">{drawn}{summary.time_spent(runs)}</div>'


def _asset(name: str) -> str:
    return importlib.resources.files("surefoot.report").joinpath(name).read_text(encoding="utf-8")
