"""The lecture on trust regions, run: every claim checked on finite MDPs, every figure drawn, one page written.

`surefoot lecture` calls `write_page`. The claims are in `chapters.CLAIMS`, each with the check that runs it.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any


def write_page(folder: str | os.PathLike, progress: bool = True, *, seed: int = 0) -> dict[str, Any]:
    """Run every claim, draw every figure and write lecture.html to `folder`.

    Arguments:
        progress: say on standard error what was done, chapter by chapter.
        seed: of every random case; each claim and figure draws from its own part of it.

    Returns {"page": path, "seconds": time taken, "claims": [{"number", "claim", "verdict", "residual",
    "tolerance", "holds"}, …]}, with numbers that need not be finite. Raises RunError where the page cannot be
    written.
    """
    began = time.perf_counter()
    # Nothing of this is needed to ask for help.
    import numpy as np

    from surefoot.compilation import keep_compiled_programs
    from surefoot.files import write_atomically
    from surefoot.lecture.chapters import CHAPTERS
    from surefoot.lecture.guarantees import measured_bounds
    from surefoot.lecture.page import Lecture, render
    from surefoot.record import versions

    keep_compiled_programs()
    results, figures = {}, {}
    for place, chapter in enumerate(CHAPTERS):
        for claim in chapter.claims:
            results[claim.number] = claim.run(seed)
        # Numbers from 100 on are no claim's.
        figures[chapter.anchor] = [
            draw(np.random.default_rng([seed, 100 + 10 * place + index])) for index, draw in enumerate(chapter.figures)
        ]
        if progress:
            numbers = [claim.number for claim in chapter.claims]
            kept = sum(results[n].holds for n in numbers)
            print(
                f"{time.perf_counter() - began:5.1f} s  {chapter.title}: claims {numbers[0]} to {numbers[-1]}, "
                f"{kept} of {len(numbers)} confirmed; figures: {len(figures[chapter.anchor])}",
                file=sys.stderr,
            )
    bounds = {g: measured_bounds(np.random.default_rng([seed, 200]), g) for g in (0.9, 0.99)}
    seconds = time.perf_counter() - began
    target = Path(folder) / "lecture.html"
    page = render(Lecture(results, figures, bounds, seed, seconds, versions()))
    write_atomically(target, page.encode())
    return {
        "page": str(target),
        "seconds": time.perf_counter() - began,
        "claims": [results[n].as_dict() for n in sorted(results)],
    }
