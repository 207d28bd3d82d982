"""The loop: collect, estimate, update, record."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from surefoot import agent as artefact
from surefoot import config
from surefoot.calibration import Calibration, calibrate
from surefoot.compilation import keep_compiled_programs
from surefoot.doctor import Finding, diagnose
from surefoot.errors import SettingError, SurefootError, did_you_mean
from surefoot.evaluation import evaluate, repeatable
from surefoot.guard import careful
from surefoot.history import read
from surefoot.iteration import Iteration, Learner, begin, iterate, settled, unjudged
from surefoot.progress import Progress
from surefoot.record import Recorder, new_run_folder
from surefoot.report.curve import learning_curve
from surefoot.report.page import write_report
from surefoot.rules import RULES, Rule
from surefoot.settings import as_json
from surefoot.sources import make_source
from surefoot.sources.base import Source
from surefoot.sources.environments import environment_name
from surefoot.tensorboard import Scalars, writer_class


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        path: its folder.
        steps: environment steps taken (real transitions).
        updates: how many updates there were, refused ones included.
        seconds: wall time from the first collection to the last record.
        evaluation: {"return": {"mean", "std", "episodes"}, "length": {"mean"}}, deterministic.
        agent: the trained agent.
        findings: what the doctor finds wrong with the run, worst first.
        calibration: promised against realised over the run.
    """

    path: Path
    steps: int
    updates: int
    seconds: float
    evaluation: dict[str, Any]
    agent: artefact.Agent
    findings: list[Finding]
    calibration: Calibration


def train(
    environment: str | Callable[[], Any],
    rule: Rule | str = "trpo",
    *,
    out: str | os.PathLike | None = None,
    progress: bool = True,
    tensorboard: bool = False,
    **settings: Any,
) -> Run:
    """Train a policy, evaluate it and leave a run folder with a report.

    Arguments:
        environment: a Gymnasium id, `package.module:callable`, or a callable that returns an environment.
        rule: such as `surefoot.TRPO(radius=0.01)`, or a rule's name for its defaults.
        out: the run's folder; by default a new one under runs/.
        progress: show a panel (or lines, outside a terminal) on standard error.
        tensorboard: write every number of metrics.jsonl for TensorBoard too, into the run's `tensorboard` folder.
        settings: any setting of `surefoot.config.Run` and its groups by name, such as `steps`, `seed`,
            `envs`, `horizon`, `discount`; the critic's are `critic_step_size` and so on.

    Raises SettingError, EnvironmentNotFound, UnsupportedSpace, RunError before anything is written, and
    EnvironmentFault while training; what was recorded until then is complete and loadable.
    """
    run = config.make_run(**settings)
    rule = make_rule(rule)
    if run.certification.guard:
        careful(rule, 1.0)  # refused before anything is made where there is nothing to shorten
    if tensorboard:
        writer_class()  # refused before anything is made where it is not installed
    keep_compiled_programs()
    source = make_source(environment, run.collection)
    try:
        return _train(environment, rule, run, source, out, progress, tensorboard)
    finally:
        source.close()


def make_rule(rule: Rule | str) -> Rule:
    """The rule itself, or a rule of this name with its defaults. Raises SettingError."""
    if isinstance(rule, Rule):
        return rule
    if not isinstance(rule, str) or rule not in RULES:
        raise SettingError(f"rule must be one of {', '.join(RULES)}, but {rule!r} came{did_you_mean(str(rule), RULES)}")
    return RULES[rule]()


def _train(
    environment: str | Callable[[], Any],
    rule: Rule,
    run: config.Run,
    source: Source,
    out: Any,
    progress: bool,
    tensorboard: bool,
) -> Run:
    name, rule_name = environment_name(environment), rule.settings_class.name
    learner, state = begin(source, rule, run)
    folder = new_run_folder(out, f"{name}-{rule_name}-s{run.seed}")
    recorder = Recorder(folder, configuration(name, rule, run))
    scalars = Scalars(folder) if tensorboard else None
    title = f"{name} · {rule_name} · seed {run.seed}"
    steps = updates = 0
    begun = time.perf_counter()
    unrecorded: list[Iteration] = []  # the last one, whose critic is being fitted and whose update is not judged yet

    def record(view: Progress, judgement: dict[str, Any]) -> None:
        while unrecorded:
            done = unrecorded.pop()
            row = settled(done.row) | judgement
            recorder.append(row)
            if scalars:
                scalars.append(row)
            view.show(row, done.returns)

    try:
        with Progress(title, run.steps, trust_region=rule.settings_class.trust_region, shown=progress) as view:
            try:
                while steps < run.steps:
                    learner, state, done = iterate(source, rule, run, learner, state)
                    record(view, done.judgement)
                    steps, updates = steps + done.row["experience"], updates + 1
                    counted = {"update": updates, "steps": steps, "seconds": time.perf_counter() - begun}
                    unrecorded.append(done._replace(row=counted | done.row))
            finally:
                record(view, unjudged("no batch followed"))
    except SurefootError as error:
        _save(learner, source, name, run, folder)
        write_report([folder])
        raise type(error)(f"{error} (what was recorded until then is in {folder})") from error
    except BaseException:
        _save(learner, source, name, run, folder)
        raise
    finally:
        recorder.close()
        if scalars:
            scalars.close()
    seconds = time.perf_counter() - begun
    trained = _save(learner, source, name, run, folder)
    result = evaluate(trained, environment, episodes=run.evaluation_episodes, seed=run.seed)
    recorder.write("evaluation.json", result | {"repeatable": _repeatable(trained, environment, run.seed)})
    write_report([folder])
    history = read(folder)
    return Run(folder, steps, updates, seconds, result, trained, diagnose(history), calibrate(history))


def _repeatable(agent: artefact.Agent, environment: Any, seed: int) -> bool | None:
    """Whether the environment repeats under its seed; None where it fails, which must not cost a finished run."""
    try:
        return repeatable(agent, environment, seed=seed)
    except SurefootError:
        return None


def configuration(environment: str, rule: Rule, run: config.Run) -> dict[str, Any]:
    """Everything needed to run it again, as config.json has it."""
    plain = {
        name: getattr(getattr(run, group) if group else run, item)
        for name, (group, item) in config.run_options().items()
    }
    return {
        "environment": environment,
        "rule": rule.settings_class.name,
        "trust_region": rule.settings_class.trust_region,
        "rule_settings": as_json(rule.settings()),
        **as_json(plain),
    }


def _save(learner: Learner, source: Source, name: str, run: config.Run, folder: Path) -> artefact.Agent:
    agent = artefact.Agent(learner.policy, source.observation_space, source.action_space, name)
    artefact.save(agent, folder / "policy", run.network)
    learning_curve(folder)
    return agent
