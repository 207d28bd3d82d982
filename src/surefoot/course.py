"""The runs of a study, made one after the other or together, and what is told of them as they end."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import sys
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from surefoot import config, history
from surefoot.calibration import column, refused
from surefoot.comparison import Comparison
from surefoot.errors import RunError, Stopped, SurefootError
from surefoot.files import write_atomically
from surefoot.lanes import kind, train_together
from surefoot.ledger import draw_run
from surefoot.record import versions
from surefoot.report.page import PAGE
from surefoot.report.study import study_picture
from surefoot.report.study_page import study_page
from surefoot.rules import Rule
from surefoot.settings import as_json, dumps
from surefoot.sources import functional_environment
from surefoot.sources.environments import environment_name
from surefoot.study_record import (
    FAILED,
    FILE,
    FINISHED,
    UNFINISHED,
    Account,
    Member,
    as_told,
    described,
)
from surefoot.sweep import Sweep, plain_settings
from surefoot.turns import Outcome, Plan, train_in_turn
from surefoot.workers import Spread, train_by_workers

SHARE = 0.1
"""Of a study's time, what page and picture may take before its end."""

Environment = str | Callable[[], Any]
Rules = Mapping[str, type[Rule]]
"""The rules of a study by their names, a user's own among them."""


class Course:
    """Final: a study under way, its runs in the order in which they are told of."""

    def __init__(
        self,
        folder: Path,
        environment: Environment,
        kinds: Rules,
        wanted: Sweep | Comparison,
        lanes: int | None,
        told: Callable[[str], None],
        spread: Spread,
    ):
        """`lanes` are how many runs one program makes at most; `spread` is where they are made."""
        self._spread = spread
        self._folder, self._environment, self._told = folder, environment, told
        self._wanted, self._lanes, self._versions = wanted, lanes, versions()
        self._name = environment_name(environment)
        self._next_drawing = 0.0
        pairs = [(point, seed) for point in wanted.points for seed in wanted.every_seed]
        self._members = [_found(folder, Member(point.folder(seed), point.values, seed)) for point, seed in pairs]
        self._plans = [
            Plan(folder / point.folder(seed), rule_of(kinds, wanted.rule(point)), wanted.run(point, seed))
            for point, seed in pairs
        ]

    def run(self, progress: bool, stop: Callable[[], bool] | None) -> list[Member]:
        """Make the runs that are not finished; all runs as they are then. Raises Stopped."""
        asked = _Latched(stop)
        self._write()
        if self._spread.workers is None:
            self._run_here(progress, asked)
        else:
            self._run_by_workers(progress, asked)
        self._draw(last=True)
        self._draw_runs(progress, asked)
        finished = sum(member.status == FINISHED for member in self._members)
        if asked.said and finished < len(self._members):
            raise Stopped(
                f"stopped with {finished} of {len(self._members)} runs finished; go on with: "
                f"surefoot resume {self._folder}"
            )
        return list(self._members)

    def _run_here(self, progress: bool, asked: _Latched) -> None:
        """Make the runs that are left in this process, group by group."""
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
                self._members[place] = _after(self._folder, self._members[place], outcome, stopped=asked.said)
            self._write()
            self._draw()
            if asked.said:
                break

    def _run_by_workers(self, progress: bool, asked: _Latched) -> None:
        """Have Ray's workers make the runs that are left, several at once."""
        left = [place for place, member in enumerate(self._members) if member.status != FINISHED]
        if not left:
            return

        def ended(index: int, error: str | None) -> None:
            place = left[index]
            outcome = Outcome(None, error)
            member = _found(self._folder, self._members[place])
            if member.status != FINISHED:
                member = _after(self._folder, member, outcome, stopped=asked.said)
            self._members[place] = member
            self._write()
            self._draw()

        train_by_workers(
            self._environment,
            [self._plans[place] for place in left],
            self._folder,
            self._spread,
            title=f"{self._name} \N{MIDDLE DOT} {len(left)} runs on {self._spread.workers} workers",
            progress=progress,
            stop=asked,
            ended=ended,
            told=self._told,
        )

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
            **wanted.told(),
            "settings": {name: value for name, value in plain.items() if name not in {*wanted.swept, "seed"}},
            "seeds": list(wanted.every_seed),
            "lanes": self._lanes,
            "versions": self._versions,
            **as_told(self._members),
        }
        write_atomically(self._folder / FILE, dumps(content, indent=1).encode())

    def _draw(self, *, last: bool = False) -> None:
        """Page and picture, in the end; before that where they do not take too much of the time."""
        begun = time.perf_counter()
        if not last and begun < self._next_drawing:
            return
        try:
            study_page(self._folder)
            study_picture(self._folder)
        except SurefootError as error:
            self._told(f"{error}; the study is whole without it, and surefoot report {self._folder} makes it anew")
        done = time.perf_counter()
        self._next_drawing = done + (1 / SHARE - 1) * (done - begun)

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


def rule_of(kinds: Rules, settings: config.RuleSettings) -> Rule:
    """The rule that has these settings."""
    return kinds[settings.name](**{item.name: getattr(settings, item.name) for item in dataclasses.fields(settings)})


def _found(folder: Path, member: Member) -> Member:
    """The run as its folder has it: finished where it was evaluated, whatever became of the study after that."""
    if not (folder / member.folder / "evaluation.json").exists():
        return member
    try:
        run = history.read(folder / member.folder)
        reached, steps = run.evaluation["return"]["mean"], run.rows[-1]["steps"]  # type: ignore[index]
    except (RunError, KeyError, TypeError, IndexError):
        return member
    return _judged(member, reached, steps, run)


def _after(folder: Path, member: Member, outcome: Outcome, *, stopped: bool) -> Member:
    """The run after it was made or tried, or neither."""
    if outcome == Outcome(None, None):
        return member
    if outcome.run is not None:
        with contextlib.suppress(RunError):
            recorded = history.read(folder / member.folder)
            return _judged(member, outcome.run.evaluation["return"]["mean"], outcome.run.steps, recorded)
        return _judged(member, outcome.run.evaluation["return"]["mean"], outcome.run.steps)
    ended = outcome.error is None or (stopped and outcome.error.startswith("stopped"))
    return member._replace(status=UNFINISHED if ended else FAILED, error=None if ended else outcome.error)


def _judged(member: Member, reached: Any, steps: Any, recorded: history.History | None = None) -> Member:
    """The run with its final return; failed where that is no number that could be averaged."""
    if isinstance(reached, (int, float)) and math.isfinite(reached) and isinstance(steps, int):
        account = _account(recorded) if recorded is not None else Account()
        return member._replace(status=FINISHED, error=None, score=float(reached), steps=steps, account=account)
    return member._replace(status=FAILED, error=f"its final evaluation came to a return of {as_json(reached)}")


def _account(recorded: history.History) -> Account:
    """What a finished run took and how far it moved. Metrics that are no numbers are left out."""
    with contextlib.suppress(RunError):
        seconds, steps, kl = (column(recorded, name) for name in ("seconds", "steps", "kl"))
        taken = column(recorded, "discarded") != 1
        figures = (
            seconds[-1],
            steps[-1] / seconds[-1] if seconds[-1] > 0 else math.nan,
            kl[taken].mean() if taken.any() else math.nan,
            kl[taken].max(initial=0.0),
            refused(recorded)[taken].mean() if taken.any() else math.nan,
        )
        return Account(*(float(figure) if math.isfinite(figure) else None for figure in figures))
    return Account()
