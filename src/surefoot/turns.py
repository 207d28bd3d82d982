"""Runs of a study made one after the other, as environments on the host need it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from surefoot import config
from surefoot.errors import Stopped, SurefootError
from surefoot.rules import Rule
from surefoot.sweep import plain_settings
from surefoot.training import Run, resume, train


class Plan(NamedTuple):
    """A run that is to be made.

    Attributes:
        folder: of the run, not there yet; or one that is gone on with.
        rule: with its settings.
        run: the other settings, its seed among them.
    """

    folder: Path
    rule: Rule
    run: config.Run


class Outcome(NamedTuple):
    """What became of a plan.

    Attributes:
        run: the finished run; None where it went wrong or was stopped.
        error: a line that says why; None where the run is finished or was not begun.
    """

    run: Run | None
    error: str | None


def train_in_turn(
    environment: str | Callable[[], Any],
    plans: Sequence[Plan],
    *,
    progress: bool = True,
    stop: Callable[[], bool] | None = None,
    told: Callable[[str], None] | None = None,
) -> list[Outcome]:
    """Make the runs one after the other; one that goes wrong does not stop the next.

    Args:
        environment: as for `train`.
        plans: the runs, in order.
        progress, told: as for `train`.
        stop: asked after every update and before every run; where it says True, the run under way ends there with a
            checkpoint, and no further one is begun.

    Returns: an outcome for each plan. A run whose outcome is an error can be gone on with where its folder is there.
    """
    outcomes: list[Outcome] = []
    stopped = False
    for plan in plans:
        stopped = stopped or (stop is not None and stop())
        if stopped:
            outcomes.append(Outcome(None, None))
            continue
        try:
            outcomes.append(Outcome(made(environment, plan, progress, stop, told), None))
        except Stopped as error:
            stopped = True
            outcomes.append(Outcome(None, str(error)))
        except SurefootError as error:
            outcomes.append(Outcome(None, str(error)))
    return outcomes


def made(
    environment: str | Callable[[], Any],
    plan: Plan,
    progress: bool,
    stop: Callable[[], bool] | None,
    told: Callable[[str], None] | None,
) -> Run:
    """Make the run, or go on with it where it is there. Raises as `train` does."""
    if (plan.folder / "config.json").exists():
        return resume(plan.folder, environment=environment, rule=plan.rule, progress=progress, stop=stop, told=told)
    settings = plain_settings(plan.run)
    return train(environment, plan.rule, out=plan.folder, progress=progress, stop=stop, told=told, **settings)
