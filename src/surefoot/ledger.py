"""What a run writes while it learns: its rows, its evaluations, its checkpoints, its policy."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax

from surefoot import agent as artefact
from surefoot import config, kept
from surefoot.errors import RunError, SurefootError
from surefoot.evaluation import play, summary
from surefoot.files import make_folder, remove
from surefoot.iteration import Iteration, settled, unjudged
from surefoot.record import Recorder, write_configuration
from surefoot.report.curve import learning_curve
from surefoot.report.page import write_report
from surefoot.resuming import Begun
from surefoot.rules import Rule
from surefoot.settings import as_json
from surefoot.sources.base import Source
from surefoot.standing import Standing, evaluation_due, save
from surefoot.tensorboard import Scalars

_LAST = "no batch followed"


class Ledger:
    """The records of one run, opened where it stands. `close` it whatever happens.

    An iteration's row is written once the next batch has judged its update, so one is always held back.
    """

    def __init__(
        self,
        begun: Begun,
        source: Source,
        rule: Rule,
        run: config.Run,
        *,
        tensorboard: bool = False,
        told: Callable[[str], None] = lambda _: None,
        shown: Callable[[dict[str, Any], Any], None] = lambda row, returns: None,
    ):
        """`told` is given lines about what is no loss; `shown` each row that was written, and the returns of the
        episodes that ended in it."""
        self.begun = begun
        self.standing = begun.standing
        self._source = source
        self._run = run
        self._shown = shown
        self._held_back = begun.standing.carried
        self._sound = begun.sound
        self._saved = time.monotonic()
        if begun.standing.steps < run.steps:
            remove(begun.folder / "evaluation.json")  # of a policy that is not the run's last any more
        recorded = max(begun.standing.updates - 1, 0)
        write_configuration(begun.folder, configuration(begun.name, rule, run) | {"id": begun.identity})
        self._recorder = Recorder(begun.folder / "metrics.jsonl", recorded)
        self._evaluations: Recorder | None = None
        if run.evaluate_every is not None:
            self._evaluations = Recorder(begun.folder / "evaluations.jsonl", begun.standing.evaluations)
        self._scalars = Scalars(begun.folder, told, since=begun.standing.steps or None) if tensorboard else None

    @property
    def finished(self) -> bool:
        """Whether the run has taken all its steps."""
        return self.standing.steps >= self._run.steps

    def enter(self, standing: Standing, made: Sequence[Iteration]) -> None:
        """Take the iterations that led to where the run stands now."""
        self.standing = standing
        for done in made:
            if done.inputs is not None:
                spaces = self._source.observation_space, self._source.action_space
                kept.save(self.begun.folder, self.begun.identity, done.row["update"], done.inputs, *spaces)
            self._write(done.judgement)
            self._held_back = done

    def evaluate_if_due(self, environment: str | Callable[[], Any]) -> float:
        """Evaluate the policy as it stands where its time has come, and write a line of it.

        The episodes begin as those of the final evaluation do, so that two lines differ by the policy alone.

        Returns: the seconds that it took, which are none of training's.

        Raises EnvironmentFault, RunError.
        """
        if self._evaluations is None or not evaluation_due(self.standing, self._run.evaluate_every):
            return 0.0
        jax.block_until_ready(self.standing.learner)  # the critic's fit is training's, and may be under way
        begun = time.perf_counter()
        run = self._run
        played = play(
            self._agent(),
            environment,
            episodes=run.evaluation_episodes,
            seed=run.seed,
            step_seconds=run.collection.step_seconds,
        )
        told = summary(played)
        spent = time.perf_counter() - begun
        self._evaluations.append(
            {
                "update": self.standing.updates,
                "steps": self.standing.steps,
                **told["return"],
                "cut": told["cut"],
                "returns": [episode.total for episode in played],
                "seconds": spent,
            }
        )
        self.standing = self.standing._replace(evaluations=self.standing.evaluations + 1)
        return spent

    def checkpoint(self, *, now: bool) -> None:
        """Write a checkpoint if it is asked for or it is time. Raises RunError."""
        if now or time.monotonic() - self._saved >= self._run.checkpoint_seconds:
            for recorder in self._recorders():
                recorder.sync()
            self._sound = save(self.begun.folder, self.begun.identity, self._source, self.standing, self._sound)
            self._saved = time.monotonic()

    def end(self) -> None:
        """Write the row that no batch will judge any more. Raises RunError."""
        self._write(unjudged(_LAST))

    def close(self) -> None:
        """Let go of the files."""
        for recorder in self._recorders():
            recorder.close()
        if self._scalars:
            self._scalars.close()

    def save_policy(self) -> artefact.Agent:
        """Write the policy, as it stands. Raises RunError."""
        agent = self._agent()
        make_folder(self.begun.folder / "policy")
        artefact.save(agent, self.begun.folder / "policy", self._run.network)
        return agent

    def rescue(self, error: BaseException) -> None:
        """Leave what there is after `error`, which is what has to be told: nothing here is raised over it."""
        folder = self.begun.folder
        if not folder.is_dir():  # not made anew where somebody removed it
            return
        # One that is there already may be newer than the checkpoint that was gone on from.
        newer = self.standing.updates > self.begun.standing.updates or not (folder / "policy" / "policy.json").exists()
        # A program that failed may have kept what it was given to write in, and JAX says so with a RuntimeError.
        with contextlib.suppress(RunError, RuntimeError):
            if newer:
                self.save_policy()
        if isinstance(error, SurefootError) and not isinstance(error, RunError):
            draw_run(folder, _quiet)

    def _agent(self) -> artefact.Agent:
        return artefact.Agent(
            self.standing.learner.policy, self._source.observation_space, self._source.action_space, self.begun.name
        )

    def _recorders(self) -> list[Recorder]:
        return [self._recorder, *([self._evaluations] if self._evaluations else [])]

    def _write(self, judgement: dict[str, Any]) -> None:
        done, self._held_back = self._held_back, None
        if done is None:
            return
        row = settled(done.row) | judgement
        self._recorder.append(row)
        if self._scalars:
            self._scalars.append(row)
        self._shown(row, done.returns)


def draw_run(folder: Path, told: Callable[[str], None]) -> None:
    """Draw a run's picture and its page, as `draw` does."""
    draw(learning_curve, folder, told)
    draw(lambda run: write_report([run]), folder, told)


def draw(picture: Callable[[Path], Any], folder: Path, told: Callable[[str], None]) -> None:
    """Draw what can be drawn again: where that fails, the run is no less done."""
    try:
        picture(folder)
    except SurefootError as error:
        told(f"{error}; the run is whole without it, and surefoot resume {folder} makes it anew")


def _quiet(line: str) -> None:
    """Something worse is told already."""


def configuration(environment: str, rule: Rule, run: config.Run) -> dict[str, Any]:
    """Everything needed to run it again, as config.json has it. Not where: no file chooses a cluster (`recipe`)."""
    plain = {
        name: getattr(getattr(run, group) if group else run, item)
        for name, (group, item) in config.run_options().items()
    }
    return {
        "environment": environment,
        "rule": rule.settings_class.name,
        "trust_region": rule.settings_class.trust_region,
        "rule_settings": as_json(rule.settings()),
        **as_json(plain | {"ray_address": None}),
    }
