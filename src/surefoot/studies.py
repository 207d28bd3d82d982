"""Many runs: every setting of a sweep, or every rule of a comparison, under every seed; what each comes to."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from surefoot import config
from surefoot.comparison import COMPARED, Comparison, comparison_of, joined, make_comparison
from surefoot.course import Course, Environment, Rules, rule_of
from surefoot.critic import make_critic
from surefoot.errors import RunError, SettingError, shown
from surefoot.files import held
from surefoot.files import sweep as sweep_up
from surefoot.guard import careful
from surefoot.policy import make_policy
from surefoot.recipe import recipe_of
from surefoot.record import differing_versions, new_run_folder
from surefoot.rules import RULES, Rule
from surefoot.settings import check
from surefoot.sharding import check_devices
from surefoot.sources import make_source, refuse_foreign_code
from surefoot.sources.environments import environment_name
from surefoot.study_record import (
    Member,
    Row,
    is_study,
    read_study,
    rows_of,
)
from surefoot.sweep import Sweep, make_sweep
from surefoot.training import make_rule, warn
from surefoot.workers import Spread


@dataclass(frozen=True)
class Study:
    """A study that came to its end.

    Attributes:
        path: its folder.
        runs: every run: folder, setting, seed, status, and its final return and steps where it is finished.
        rows: every setting: how many of its runs are finished, and the statistic of their final returns.
    """

    path: Path
    runs: list[Member]
    rows: list[Row]


def study(
    environment: Environment,
    rule: Rule | str = "trpo",
    *,
    seeds: int = 1,
    sweep: Mapping[str, Sequence[Any]] | None = None,
    out: str | os.PathLike | None = None,
    lanes: int | None = None,
    workers: int | None = None,
    ray_address: str | None = None,
    progress: bool = True,
    stop: Callable[[], bool] | None = None,
    told: Callable[[str], None] | None = None,
    **settings: Any,
) -> Study:
    """Train every setting of a sweep with every seed; leave a folder with all runs, a table and a picture.

    Arguments:
        environment: as for `train`.
        rule: such as `surefoot.TRPO(damping=0.05)`, or a rule's name for its defaults.
        seeds: how many, from `seed` on, one after the other.
        sweep: values by the name of a numeric setting of the rule or the run: {"radius": [0.003, 0.01]}. Several make
            their product.
        out: the study's folder; by default a new one under runs/.
        lanes: how many runs are made together at most, where the environment is a function itself; by default as
            many as fit.
        workers: make so many runs at once, each by a Ray worker that sees the study's folder, on this machine or the
            cluster at `ray_address`; by default this process makes them.
        progress, told: as for `train`.
        stop: asked as by `train`; where it says True, the study ends there, and `resume_study` goes on with it.
        settings: as for `train`; `seed` is the first.

    Every setting is checked before anything is written: SettingError, EnvironmentNotFound, UnsupportedSpace, and
    RunError where `out` holds something. A run that goes wrong afterwards is told of in its row, and stops no other.
    Raises Stopped where `stop` ended the study, and RunError where the disk refuses what the study writes itself.
    """
    spread = _spread(lanes, workers, ray_address)
    config.refuse_in_a_study(settings)
    base = make_rule(rule)
    wanted = make_sweep(base.settings(), settings, seeds, sweep)
    name = environment_name(environment)
    kinds = {wanted.rule_class.name: type(base)}
    _refuse_unfit(environment, kinds, wanted)
    folder = new_run_folder(out, f"{name}-{wanted.rule_class.name}-study")
    with held(folder):
        return _study(
            folder, Course(folder, environment, kinds, wanted, lanes, told or warn, spread).run(progress, stop)
        )


def compare(
    environment: Environment,
    rules: Sequence[Rule | str] = COMPARED,
    *,
    seeds: int = 5,
    out: str | os.PathLike | None = None,
    lanes: int | None = None,
    workers: int | None = None,
    ray_address: str | None = None,
    progress: bool = True,
    stop: Callable[[], bool] | None = None,
    told: Callable[[str], None] | None = None,
    **settings: Any,
) -> Study:
    """Train every rule with every seed and the same settings; leave a folder with all runs, a table, a page, a picture.

    Arguments:
        environment: as for `train`.
        rules: their names, or such as `surefoot.TRPO(radius=0.02)`.
        seeds: how many, from `seed` on, one after the other.
        out: the study's folder; by default a new one under runs/. One that holds a comparison with the same
            environment and settings is gone on with: its rules and seeds stay, what is new is added, and no finished
            run is made again.
        lanes, workers, ray_address, progress, stop, told: as for `study`.
        settings: as for `train`; `seed` is the first.

    Every setting is checked before anything is written: SettingError, EnvironmentNotFound, UnsupportedSpace, and
    RunError where `out` holds something else, or a comparison of another environment or other settings. A run that goes
    wrong afterwards is told of in its row, and stops no other. Raises Stopped where `stop` ended the study, and
    RunError where the disk refuses what the study writes itself.
    """
    spread = _spread(lanes, workers, ray_address)
    config.refuse_in_a_study(settings)
    if isinstance(rules, str) or not isinstance(rules, Sequence):
        raise SettingError(f"rules must be a sequence of rules or their names, but {shown(rules)} came")
    made = [make_rule(rule) for rule in rules]
    wanted = make_comparison([rule.settings() for rule in made], settings, seeds)
    kinds = {**RULES, **{rule.settings_class.name: type(rule) for rule in made}}
    name = environment_name(environment)
    if out is not None and is_study(out):
        return _extended(Path(out), environment, name, wanted, kinds, lanes, spread, progress, stop, told or warn)
    _refuse_unfit(environment, kinds, wanted)
    folder = new_run_folder(out, f"{name}-comparison")
    with held(folder):
        return _study(
            folder, Course(folder, environment, kinds, wanted, lanes, told or warn, spread).run(progress, stop)
        )


def _extended(
    folder: Path,
    environment: Environment,
    name: str,
    wanted: Comparison,
    kinds: Rules,
    lanes: int | None,
    spread: Spread,
    progress: bool,
    stop: Callable[[], bool] | None,
    told: Callable[[str], None],
) -> Study:
    """Go on with a comparison that is there, with more rules or seeds."""
    _refuse_links(folder)
    with held(folder):
        known, there, before = _begun_with(folder)
        if not isinstance(there, Comparison):
            raise RunError(f"{folder} holds a study of one rule, not a comparison; name another folder")
        if known != name:
            raise RunError(f"{folder} compares rules in {known}, but {name} came; take that one, or another folder")
        if not isinstance(environment, str):
            told(f"{folder} knows its environment by name alone, {name}: make sure that it is the same")
        both = joined(there, wanted, folder)
        _refuse_unfit(environment, kinds, both)
        _note_versions(folder, told)
        sweep_up(folder)
        return _study(
            folder, Course(folder, environment, kinds, both, lanes or before, told, spread).run(progress, stop)
        )


def _note_versions(folder: Path, told: Callable[[str], None]) -> None:
    if changed := differing_versions(read_study(folder).told.get("versions")):
        told(f"the bits may differ from those of an undisturbed study: {', '.join(changed)}")


def resume_study(
    path: str | os.PathLike,
    *,
    environment: Environment | None = None,
    allow_env: bool = False,
    lanes: int | None = None,
    workers: int | None = None,
    ray_address: str | None = None,
    progress: bool = True,
    stop: Callable[[], bool] | None = None,
    told: Callable[[str], None] | None = None,
) -> Study:
    """Go on with the runs of a study that are not finished, those that failed among them; leave the others alone.

    Arguments:
        path: the study's folder.
        environment: the environment, where study.json does not name one that can be made from its name.
        allow_env: let the study's own package.module:callable environment be imported, which runs its code.
        lanes: as for `study`; by default those that the study was begun with.
        workers, ray_address, progress, stop, told: as for `study`.

    Raises RunError where there is no study that can be gone on with, or another process is at work on it, and
    whatever `study` raises.
    """
    spread = _spread(lanes, workers, ray_address)
    folder = Path(path)
    name, wanted, known = _begun_with(folder)
    _refuse_links(folder)
    refuse_foreign_code(folder, name, allowed=allow_env or environment is not None)
    meant = environment or name
    told = told or warn
    with held(folder):
        _note_versions(folder, told)
        sweep_up(folder)
        _refuse_unfit(meant, RULES, wanted)
        return _study(folder, Course(folder, meant, RULES, wanted, lanes or known, told, spread).run(progress, stop))


def _spread(lanes: int | None, workers: int | None, ray_address: str | None) -> Spread:
    """How a study's runs are spread. Raises SettingError."""
    _check_lanes(lanes)
    for name, value in (("workers", workers), ("ray_address", ray_address)):
        check(config.Collection, name, value)
    if workers is None and ray_address is not None:
        raise SettingError(config.refused_without_workers("ray_address", None, ray_address))
    if lanes is not None and workers is not None:
        raise SettingError("lanes are of one process, and workers are several; leave one of them out")
    return Spread(workers, ray_address)


def _check_lanes(lanes: int | None) -> None:
    if lanes is not None and (isinstance(lanes, bool) or not isinstance(lanes, int) or lanes < 1):
        raise SettingError(f"lanes must be a whole number, at least 1, or None, but {shown(lanes)} came")


def _refuse_unfit(environment: Environment, kinds: Rules, wanted: Sweep | Comparison) -> None:
    """Raise what the runs would: the environment is made once, and each setting's rule is given a policy of it."""
    first = wanted.every_seed[0]
    points = wanted.points
    with contextlib.closing(make_source(environment, wanted.run(points[0], first).collection)) as source:
        spaces = source.observation_space, source.action_space
    run = wanted.run(points[0], first)
    policy = make_policy(*spaces, run.network, jax.random.key(first))
    make_critic(spaces[0], run.critic, jax.random.key(first), normalise=run.network.normalise)
    for point in points:
        check_devices(wanted.run(point, first).collection.devices)
        made = rule_of(kinds, wanted.rule(point))
        made.init(policy)
        if wanted.run(point, first).certification.guard:
            careful(made, 1.0)


def _begun_with(folder: Path) -> tuple[str, Sweep | Comparison, int | None]:
    """What study.json says of a study. Raises RunError where it cannot be gone on with."""
    told = read_study(folder).told
    try:
        compared = "rules" in told
        settings, seeds, swept = told.get("settings"), told.get("seeds"), {} if compared else told.get("sweep")
        if not isinstance(settings, dict) or not isinstance(swept, dict):
            raise SettingError("settings and sweep must be JSON objects")
        if not isinstance(seeds, list) or not all(type(seed) is int for seed in seeds) or not seeds:
            raise SettingError("seeds must be whole numbers")
        if seeds != list(range(seeds[0], seeds[0] + len(seeds))):
            raise SettingError("seeds must follow one another")
        own = ("environment",) if compared else ("environment", "rule", "rule_settings")
        recipe = recipe_of({**settings, **{key: told.get(key) for key in own}})
        lanes = told.get("lanes")
        _check_lanes(lanes)
        wanted: Sweep | Comparison
        if compared:
            wanted = comparison_of(told, recipe.settings, seeds)
        else:
            base = config.RULES[str(recipe.rule)](**recipe.rule_settings)
            wanted = make_sweep(base, {**recipe.settings, "seed": seeds[0]}, len(seeds), swept)
    except SettingError as error:
        raise RunError(f"{folder} holds no study that can be gone on with: {error}") from None
    return str(recipe.environment), wanted, lanes


def _refuse_links(folder: Path) -> None:
    """Raise RunError where the way to a run is a link: going on would write wherever it leads."""
    runs = folder / "runs"
    for path in (runs, *(runs.iterdir() if runs.is_dir() else ())):
        if path.is_symlink():
            raise RunError(f"{path} is a link; put what it leads to in its place to go on")


def _study(folder: Path, members: list[Member]) -> Study:
    return Study(folder, members, rows_of(members))
