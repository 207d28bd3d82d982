"""Many runs: every setting of a sweep under every seed, and what each setting comes to."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import sys
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax

from surefoot import config, history
from surefoot.critic import make_critic
from surefoot.errors import RunError, SettingError, Stopped, SurefootError, shown
from surefoot.files import held, write_atomically
from surefoot.files import sweep as sweep_up
from surefoot.guard import careful
from surefoot.lanes import kind, train_together
from surefoot.ledger import draw_run
from surefoot.policy import make_policy
from surefoot.recipe import recipe_of
from surefoot.record import differing_versions, new_run_folder, versions
from surefoot.report.page import PAGE
from surefoot.report.study import study_picture
from surefoot.rules import RULES, Rule
from surefoot.settings import as_json, dumps
from surefoot.sources import functional_environment, make_source, refuse_foreign_code
from surefoot.sources.environments import environment_name
from surefoot.study_record import (
    FAILED,
    FILE,
    FINISHED,
    UNFINISHED,
    Member,
    Row,
    as_told,
    described,
    read_study,
    rows_of,
)
from surefoot.sweep import Sweep, make_sweep, plain_settings
from surefoot.training import make_rule, warn
from surefoot.turns import Outcome, Plan, train_in_turn

_Environment = str | Callable[[], Any]


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
    environment: _Environment,
    rule: Rule | str = "trpo",
    *,
    seeds: int = 1,
    sweep: Mapping[str, Sequence[Any]] | None = None,
    out: str | os.PathLike | None = None,
    lanes: int | None = None,
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
        progress, told: as for `train`.
        stop: asked as by `train`; where it says True, the study ends there, and `resume_study` goes on with it.
        settings: as for `train`; `seed` is the first.

    Every setting is checked before anything is written: SettingError, EnvironmentNotFound, UnsupportedSpace, and
    RunError where `out` holds something. A run that goes wrong afterwards is told of in its row, and stops no other.
    Raises Stopped where `stop` ended the study, and RunError where the disk refuses what the study writes itself.
    """
    _check_lanes(lanes)
    base = make_rule(rule)
    wanted = make_sweep(base.settings(), settings, seeds, sweep)
    name = environment_name(environment)
    _refuse_unfit(environment, type(base), wanted)
    folder = new_run_folder(out, f"{name}-{wanted.rule_class.name}-study")
    with held(folder):
        return _Course(folder, environment, type(base), wanted, lanes, told or warn).run(progress, stop)


def resume_study(
    path: str | os.PathLike,
    *,
    environment: _Environment | None = None,
    allow_env: bool = False,
    lanes: int | None = None,
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
        progress, stop, told: as for `study`.

    Raises RunError where there is no study that can be gone on with, or another process is at work on it, and
    whatever `study` raises.
    """
    _check_lanes(lanes)
    folder = Path(path)
    name, rule, wanted, known = _begun_with(folder)
    _refuse_links(folder)
    refuse_foreign_code(folder, name, allowed=allow_env or environment is not None)
    meant = environment or name
    told = told or warn
    with held(folder):
        if changed := differing_versions(read_study(folder).told.get("versions")):
            told(f"the bits may differ from those of an undisturbed study: {', '.join(changed)}")
        sweep_up(folder)
        _refuse_unfit(meant, rule, wanted)
        return _Course(folder, meant, rule, wanted, lanes or known, told).run(progress, stop)


class _Course:
    """Final: a study under way, its runs in the order in which they are told of."""

    def __init__(
        self,
        folder: Path,
        environment: _Environment,
        rule: type[Rule],
        wanted: Sweep,
        lanes: int | None,
        told: Callable[[str], None],
    ):
        self._folder, self._environment, self._told = folder, environment, told
        self._wanted, self._lanes, self._versions = wanted, lanes, versions()
        self._name = environment_name(environment)
        pairs = [(point, seed) for point in wanted.points for seed in wanted.every_seed]
        self._members = [_found(folder, Member(point.folder(seed), point.values, seed)) for point, seed in pairs]
        self._plans = [
            Plan(folder / point.folder(seed), _rule_of(rule, wanted.rule(point)), wanted.run(point, seed))
            for point, seed in pairs
        ]

    def run(self, progress: bool, stop: Callable[[], bool] | None) -> Study:
        """Make the runs that are not finished. Raises Stopped."""
        asked = _Latched(stop)
        self._write()
        together = functional_environment(self._environment) is not None
        for group in groups(self._plans, together=together):
            left = [place for place in group if self._members[place].status != FINISHED]
            if not left:
                continue
            if progress:
                self._announce(left)
            plans = [self._plans[place] for place in group]
            done = [index for index, place in enumerate(group) if place not in left]
            trainer = train_in_turn
            if len(group) > 1:
                trainer = partial(train_together, finished=done, lanes=self._lanes)
            outcomes = trainer(self._environment, plans, progress=progress, stop=asked, told=self._told)
            for place, outcome in zip(group, outcomes, strict=True):
                self._members[place] = _after(self._members[place], outcome, stopped=asked.said)
            self._write()
            if asked.said:
                break
        self._draw()
        self._draw_runs(progress, asked)
        finished = sum(member.status == FINISHED for member in self._members)
        if asked.said and finished < len(self._members):
            raise Stopped(
                f"stopped with {finished} of {len(self._members)} runs finished; go on with: "
                f"surefoot resume {self._folder}"
            )
        return Study(self._folder, list(self._members), rows_of(self._members))

    def _announce(self, places: Sequence[int]) -> None:
        first, last = self._members[places[0]], len(places) - 1
        what = f"{described(first.values)}, seed {first.seed}" + (f", and {last} more" if last else "")
        done = sum(member.status == FINISHED for member in self._members)
        print(f"study: {done} of {len(self._members)} runs finished; now {what}", file=sys.stderr, flush=True)

    def _write(self) -> None:
        wanted = self._wanted
        plain = plain_settings(self._plans[0].run)
        content = {
            "environment": self._name,
            "rule": wanted.rule_class.name,
            "rule_settings": wanted.rule_settings,
            "settings": {name: value for name, value in plain.items() if name not in {*wanted.swept, "seed"}},
            "seeds": list(wanted.every_seed),
            "sweep": wanted.swept,
            "lanes": self._lanes,
            "versions": self._versions,
            **as_told(self._members),
        }
        write_atomically(self._folder / FILE, dumps(content, indent=1).encode())

    def _draw(self) -> None:
        try:
            study_picture(self._folder)
        except SurefootError as error:
            self._told(f"{error}; the study is whole without it, and surefoot report {self._folder} makes it anew")

    def _draw_runs(self, progress: bool, stop: Callable[[], bool]) -> None:
        """The page and the picture of each finished run that has none, which are those made as lanes: after all of
        them, and in going on with the study where that did not come to its end."""
        folders = [self._folder / member.folder for member in self._members if member.status == FINISHED]
        missing = [path for path in folders if (path / "evaluation.json").exists() and not (path / PAGE).exists()]
        last = -math.inf
        for done, folder in enumerate(missing):
            if stop():
                return
            if progress and time.monotonic() - last >= _SECONDS_BETWEEN_LINES:
                last = time.monotonic()
                print(f"study: {done} of {len(missing)} runs' pages drawn", file=sys.stderr, flush=True)
            draw_run(folder, self._told)


_SECONDS_BETWEEN_LINES = 10.0


class _Latched:
    """Final: a `stop` that goes on saying so, and whether it has."""

    def __init__(self, stop: Callable[[], bool] | None):
        self._stop = stop
        self.said = False

    def __call__(self) -> bool:
        self.said = self.said or (self._stop is not None and self._stop())
        return self.said


def groups(plans: Sequence[Plan], *, together: bool) -> list[list[int]]:
    """The places of the plans, in groups that may be made together (see `lanes.kind`); each alone unless `together`."""
    found: dict[Hashable, list[int]] = {}
    for place, plan in enumerate(plans):
        same = kind(plan.rule, plan.run) if together else None
        found.setdefault(place if same is None else same, []).append(place)
    return list(found.values())


def _check_lanes(lanes: int | None) -> None:
    if lanes is not None and (isinstance(lanes, bool) or not isinstance(lanes, int) or lanes < 1):
        raise SettingError(f"lanes must be a whole number, at least 1, or None, but {shown(lanes)} came")


def _rule_of(rule: type[Rule], settings: config.RuleSettings) -> Rule:
    return rule(**{item.name: getattr(settings, item.name) for item in dataclasses.fields(settings)})


def _refuse_unfit(environment: _Environment, rule: type[Rule], wanted: Sweep) -> None:
    """Raise what the runs would: the environment is made once, and each setting's rule is given a policy of it."""
    first = wanted.every_seed[0]
    points = wanted.points
    with contextlib.closing(make_source(environment, wanted.run(points[0], first).collection)) as source:
        spaces = source.observation_space, source.action_space
    run = wanted.run(points[0], first)
    policy = make_policy(*spaces, run.network, jax.random.key(first))
    make_critic(spaces[0], run.critic, jax.random.key(first), normalise=run.network.normalise)
    for point in points:
        made = _rule_of(rule, wanted.rule(point))
        made.init(policy)
        if wanted.run(point, first).certification.guard:
            careful(made, 1.0)


def _begun_with(folder: Path) -> tuple[str, type[Rule], Sweep, int | None]:
    """What study.json says of a study. Raises RunError where it cannot be gone on with."""
    told = read_study(folder).told
    try:
        settings, seeds, swept = told.get("settings"), told.get("seeds"), told.get("sweep")
        if not isinstance(settings, dict) or not isinstance(swept, dict):
            raise SettingError("settings and sweep must be JSON objects")
        if not isinstance(seeds, list) or not all(type(seed) is int for seed in seeds) or not seeds:
            raise SettingError("seeds must be whole numbers")
        if seeds != list(range(seeds[0], seeds[0] + len(seeds))):
            raise SettingError("seeds must follow one another")
        recipe = recipe_of({**settings, **{key: told.get(key) for key in ("environment", "rule", "rule_settings")}})
        rule = RULES[str(recipe.rule)]
        base = rule.settings_class(**recipe.rule_settings)
        lanes = told.get("lanes")
        _check_lanes(lanes)
        wanted = make_sweep(base, {**recipe.settings, "seed": seeds[0]}, len(seeds), swept)
    except SettingError as error:
        raise RunError(f"{folder} holds no study that can be gone on with: {error}") from None
    return str(recipe.environment), rule, wanted, lanes


def _refuse_links(folder: Path) -> None:
    """Raise RunError where the way to a run is a link: going on would write wherever it leads."""
    runs = folder / "runs"
    for path in (runs, *(runs.iterdir() if runs.is_dir() else ())):
        if path.is_symlink():
            raise RunError(f"{path} is a link; put what it leads to in its place to go on")


def _found(folder: Path, member: Member) -> Member:
    """The run as its folder has it: finished where it was evaluated, whatever became of the study after that."""
    if not (folder / member.folder / "evaluation.json").exists():
        return member
    try:
        run = history.read(folder / member.folder)
        reached, steps = run.evaluation["return"]["mean"], run.rows[-1]["steps"]  # type: ignore[index]
    except (RunError, KeyError, TypeError, IndexError):
        return member
    return _judged(member, reached, steps)


def _after(member: Member, outcome: Outcome, *, stopped: bool) -> Member:
    """The run after it was made or tried, or neither."""
    if outcome == Outcome(None, None):
        return member
    if outcome.run is not None:
        return _judged(member, outcome.run.evaluation["return"]["mean"], outcome.run.steps)
    ended = outcome.error is None or (stopped and outcome.error.startswith("stopped"))
    return member._replace(status=UNFINISHED if ended else FAILED, error=None if ended else outcome.error)


def _judged(member: Member, reached: Any, steps: Any) -> Member:
    """The run with its final return; failed where that is no number that could be averaged."""
    if isinstance(reached, (int, float)) and math.isfinite(reached) and isinstance(steps, int):
        return member._replace(status=FINISHED, error=None, score=float(reached), steps=steps)
    return member._replace(status=FAILED, error=f"its final evaluation came to a return of {as_json(reached)}")
