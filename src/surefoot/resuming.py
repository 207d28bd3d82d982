"""Going on with a run: what it was begun with, and its newest checkpoint that is sound."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from surefoot import checkpoint, config
from surefoot.errors import RunError, SettingError
from surefoot.files import make_folder, move
from surefoot.recipe import Recipe, read_recipe
from surefoot.record import rows_missing, whole_lines
from surefoot.rules import RULES, Rule
from surefoot.sources.base import Source
from surefoot.standing import Standing, load


class Begun(NamedTuple):
    """A run's folder, identity and environment's name, where it stands, and the updates of its sound checkpoints."""

    folder: Path
    identity: str
    name: str
    standing: Standing
    sound: list[int]


def newest(begun: Begun, source: Source, told: Callable[[str], None]) -> Begun:
    """The run as its newest sound checkpoint has it whose rows are all there; as it was begun where it has none.

    Raises RunError where metrics.jsonl or evaluations.jsonl has lost the rows of every sound checkpoint.
    """
    lines: list[str] = []
    metrics, evaluations = begun.folder / "metrics.jsonl", begun.folder / "evaluations.jsonl"
    rows, evaluated = (len(whole_lines(file)) if file.exists() else 0 for file in (metrics, evaluations))
    short: RunError | None = None
    for one in checkpoint.found(begun.folder, begun.identity, lines.append):
        try:
            standing = load(one, source, begun.standing)
        except RunError as error:
            lines.append(str(error))
            continue
        missing = rows_missing(metrics, rows, standing.updates - 1)
        if missing := missing or rows_missing(evaluations, evaluated, standing.evaluations):
            short = short or missing
            lines.append(f"{one.file}: {missing}")
            continue
        result, chosen = begun._replace(standing=standing, sound=[one.update]), f"going on from {one.file}"
        break
    else:
        if short:
            raise short
        result, chosen = begun, "no checkpoint is sound, so the run begins again from its config.json"
        if rows:
            chosen += f"; what it had is in {_put_aside(begun.folder)}"
    if lines or (rows and result is begun):
        for line in [*(f"passed by: {line}" for line in lines), chosen]:
            told(line)
    return result


def _put_aside(folder: Path) -> Path:
    """Move what a run that begins again would write over into a folder of its own."""
    number = 1
    while (aside := folder / f"before-{number}").exists():
        number += 1
    make_folder(aside)
    for name in _RESULTS:
        if (folder / name).exists():
            move(folder / name, aside / name)
    return aside


_RESULTS = ("metrics.jsonl", "evaluations.jsonl", "evaluation.json", "policy", "batches")


def begun_with(folder: Path, steps: int | None = None) -> tuple[Recipe, Rule, config.Run]:
    """What a run's config.json says, the rule and the settings in it, `steps` in place of its own.

    Raises RunError where they cannot be read or are no run's, SettingError for a number of steps that is none.
    """
    try:
        recipe = read_recipe(folder / "config.json")
        if recipe.environment is None or recipe.rule is None:
            raise SettingError(f"config: {folder / 'config.json'} names no environment or no rule")
    except SettingError as error:
        raise RunError(f"{folder} holds no run that can be gone on with: {error}") from None
    if config.RULES[recipe.rule].tabular_only:
        raise RunError(f"{folder}/config.json: the rule {recipe.rule} is for finite MDPs, and no run has it")
    run = config.make_run(**recipe.settings | ({} if steps is None else {"steps": steps}))
    return recipe, RULES[recipe.rule](**recipe.rule_settings), run


def refuse_links(folder: Path) -> None:
    """Raise RunError where part of a run is a link: going on would write wherever it leads."""
    for inside, folders, files in os.walk(folder):
        for name in (*folders, *files):
            if os.path.islink(os.path.join(inside, name)):
                raise RunError(f"{os.path.join(inside, name)} is a link; put what it leads to in its place to go on")
