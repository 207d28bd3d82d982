"""Where a run stands between two iterations, as a value and as a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from surefoot import checkpoint
from surefoot.errors import RunError, printable
from surefoot.iteration import Iteration, Learner, settled
from surefoot.sources.base import Source

_WORDS = {"inf": float("inf"), "-inf": float("-inf"), "nan": float("nan")}


class Standing(NamedTuple):
    """Everything that going on takes.

    Attributes:
        learner: what was learned.
        state: the source's.
        carried: the last iteration, whose update is not judged yet; None before the first.
        steps: environment steps taken.
        updates: iterations made.
        seconds: of training so far.
        evaluations: of it while it learned, made so far.
    """

    learner: Learner
    state: Any
    carried: Iteration | None = None
    steps: int = 0
    updates: int = 0
    seconds: float = 0.0
    evaluations: int = 0


def further(
    standing: Standing, made: Sequence[Iteration], learner: Learner, state: Any, begun: float, spent: float
) -> tuple[Standing, list[Iteration]]:
    """Where the run stands after these iterations, and they with their place in the run in their rows.

    They were begun at second `begun` of the training and took `spent` seconds together. The learner and the source's
    state are those after the last of them.
    """
    numbered: list[Iteration] = []
    for index, done in enumerate(made, start=1):
        updates, steps = standing.updates + 1, standing.steps + done.row["experience"]
        seconds = begun + spent * index / len(made)
        done = done._replace(row={"update": updates, "steps": steps, "seconds": seconds, **done.row})
        standing = standing._replace(carried=done, steps=steps, updates=updates, seconds=seconds)
        numbered.append(done)
    return standing._replace(learner=learner, state=state), numbered


def next_pause(standing: Standing, steps: int, every: int | None) -> int:
    """The steps at which something other than learning is due: the run's last one or the next evaluation, one
    `every` so many steps."""
    return steps if every is None else min(steps, (standing.steps // every + 1) * every)


def evaluation_due(standing: Standing, every: int | None) -> bool:
    """Whether the last iteration was the first to reach a multiple of `every` steps."""
    if every is None or standing.carried is None:
        return False
    return standing.steps // every > (standing.steps - standing.carried.row["experience"]) // every


def save(run: Path, identity: str, source: Source, standing: Standing, sound: Sequence[int] = ()) -> list[int]:
    """Write a checkpoint, as `checkpoint.write` does. Raises RunError where the disk refuses it."""
    arrays, facts = source.pack(standing.state)
    carried = standing.carried
    return checkpoint.write(
        run,
        identity,
        standing.updates,
        {f"source/{name}": array for name, array in arrays.items()} | checkpoint.arrays_of(standing.learner, "learner"),
        {
            "source": facts,
            "steps": standing.steps,
            "updates": standing.updates,
            "seconds": standing.seconds,
            "evaluations": standing.evaluations,
            "row": None if carried is None else settled(carried.row),
            "returns": None if carried is None else np.asarray(carried.returns, np.float64).tolist(),
        },
        sound,
    )


def load(found: checkpoint.Checkpoint, source: Source, fresh: Standing) -> Standing:
    """The standing that a checkpoint holds; `fresh` is that of the same run before its first iteration.

    Raises RunError where the checkpoint is not of this run.
    """
    facts, prefix = found.facts, "source/"
    parts = {name.removeprefix(prefix): array for name, array in found.arrays.items() if name.startswith(prefix)}
    try:
        carried = None
        if facts["row"] is not None:
            row = {name: _number(value) for name, value in facts["row"].items()}
            if not {"steps", "accepted", "kl", "update"} <= row.keys() or facts["updates"] != found.update:
                raise ValueError("its last row is none")
            carried = Iteration(row, np.asarray(facts["returns"], np.float64), {})
        return Standing(
            learner=checkpoint.tree_of(fresh.learner, found.arrays, "learner"),
            state=source.unpack(parts, facts["source"], fresh.state),
            carried=carried,
            steps=int(facts["steps"]),
            updates=int(facts["updates"]),
            seconds=float(facts["seconds"]),
            evaluations=int(facts.get("evaluations", 0)),  # checkpoints of before there were any have none
        )
    except RunError as error:
        raise RunError(f"{found.file}: {error}") from None
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise RunError(f"{found.file} does not fit this run: {printable(error)}") from None


def _number(value: Any) -> Any:
    """A metric as it was, where JSON has no number for it."""
    if isinstance(value, list):
        return [_number(item) for item in value]
    return _WORDS.get(value, value) if isinstance(value, str) else value
