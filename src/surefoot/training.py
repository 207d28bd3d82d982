"""The loop: collect, estimate, update, record."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from surefoot import agent as artefact
from surefoot import checkpoint, config
from surefoot.calibration import Calibration, calibrate
from surefoot.compilation import keep_compiled_programs
from surefoot.doctor import Finding, diagnose
from surefoot.errors import RunError, SettingError, Stopped, SurefootError, did_you_mean
from surefoot.evaluation import evaluate, repeatable
from surefoot.guard import careful
from surefoot.history import read
from surefoot.iteration import Learner, begin, iterate, settled, unjudged
from surefoot.progress import Progress
from surefoot.reading import read_json
from surefoot.record import Recorder, new_run_folder
from surefoot.report.curve import learning_curve
from surefoot.report.page import write_report
from surefoot.rules import RULES, Rule
from surefoot.settings import as_json
from surefoot.sources import make_source
from surefoot.sources.base import Source
from surefoot.sources.environments import environment_name
from surefoot.standing import Standing, load, save
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
    stop: Callable[[], bool] | None = None,
    **settings: Any,
) -> Run:
    """Train a policy, evaluate it and leave a run folder with a report.

    Arguments:
        environment: a Gymnasium id, `package.module:callable`, or a callable that returns an environment.
        rule: such as `surefoot.TRPO(radius=0.01)`, or a rule's name for its defaults.
        out: the run's folder; by default a new one under runs/.
        progress: show a panel (or lines, outside a terminal) on standard error.
        tensorboard: write every number of metrics.jsonl for TensorBoard too, into the run's `tensorboard` folder.
        stop: asked after every update; where it says True, the run ends there with a checkpoint.
        settings: any setting of `surefoot.config.Run` and its groups by name, such as `steps`, `seed`,
            `envs`, `horizon`, `discount`; the critic's are `critic_step_size` and so on.

    Raises SettingError, EnvironmentNotFound, UnsupportedSpace, RunError before anything is written, and
    EnvironmentFault while training; what was recorded until then is complete and loadable. Raises Stopped where
    `stop` ended the run before its last step.
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
        standing = Standing(*begin(source, rule, run))
        folder = new_run_folder(out, f"{environment_name(environment)}-{rule.settings_class.name}-s{run.seed}")
        return _train(environment, rule, run, source, folder, standing, progress, tensorboard, stop)
    finally:
        source.close()


def make_rule(rule: Rule | str) -> Rule:
    """The rule itself, or a rule of this name with its defaults. Raises SettingError."""
    if isinstance(rule, Rule):
        return rule
    if not isinstance(rule, str) or rule not in RULES:
        raise SettingError(f"rule must be one of {', '.join(RULES)}, but {rule!r} came{did_you_mean(str(rule), RULES)}")
    return RULES[rule]()


def resume(
    path: str | os.PathLike,
    *,
    steps: int | None = None,
    environment: str | Callable[[], Any] | None = None,
    allow_env: bool = False,
    progress: bool = True,
    tensorboard: bool = False,
    stop: Callable[[], bool] | None = None,
    told: Callable[[str], None] | None = None,
) -> Run:
    """Go on with a run as if it had never stopped: the same metrics but for times, and the same policy, bit for bit.

    Arguments:
        path: the run's folder. Its newest sound checkpoint is gone on from; without any it begins again.
        steps: train until this many environment steps in place of those that the run was begun with.
        environment: the environment, where config.json does not name one that can be made from its name.
        allow_env: let the run's own package.module:callable environment be imported, which runs its code.
        progress, tensorboard, stop: as for `train`.
        told: is given a line for each checkpoint that is passed by because it is not sound.

    Raises RunError where there is no run that can be gone on with, and whatever `train` raises.
    """
    folder = Path(path)
    name, rule, run = begun_with(folder, steps)
    _refuse_links(folder)
    if environment is None and ":" in name and not allow_env:
        raise RunError(
            f"{folder} names the environment {name!r}, which runs code of that module; say allow_env if it is yours"
        )
    if tensorboard:
        writer_class()
    keep_compiled_programs()
    source = make_source(environment or name, run.collection)
    try:
        standing = Standing(*begin(source, rule, run))
        found = checkpoint.newest(folder, told or _quiet)
        if found is not None:
            standing = load(found, source, standing)
        return _train(environment or name, rule, run, source, folder, standing, progress, tensorboard, stop)
    finally:
        source.close()


def begun_with(folder: Path, steps: int | None = None) -> tuple[str, Rule, config.Run]:
    """The environment's name, the rule and the settings in a run's config.json, `steps` in place of its own.

    Raises RunError where they cannot be read, SettingError for what they may not be.
    """
    try:
        told = read_json(folder / "config.json")
        known = {name: told[name] for name in config.run_options() if name in told}
        name, rule = str(told["environment"]), config.RULES[told["rule"]](**told["rule_settings"])
    except SettingError as error:
        raise RunError(f"{folder}/config.json: {error}") from None
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise RunError(f"{folder} holds no run that can be gone on with: {error}") from None
    if rule.tabular_only:
        raise RunError(f"{folder}/config.json: the rule {rule.name} is for finite MDPs, and no run has it")
    run = config.make_run(**known | ({} if steps is None else {"steps": steps}))
    return name, RULES[told["rule"]](**dataclasses.asdict(rule)), run


def _refuse_links(folder: Path) -> None:
    """Raise RunError where part of a run is a link: going on would write wherever it leads."""
    for inside, folders, files in os.walk(folder):
        for name in (*folders, *files):
            if os.path.islink(os.path.join(inside, name)):
                raise RunError(f"{os.path.join(inside, name)} is a link; put what it leads to in its place to go on")


def _quiet(line: str) -> None:
    """Nobody asked."""


def _train(
    environment: str | Callable[[], Any],
    rule: Rule,
    run: config.Run,
    source: Source,
    folder: Path,
    standing: Standing,
    progress: bool,
    tensorboard: bool,
    stop: Callable[[], bool] | None,
) -> Run:
    name, rule_name = environment_name(environment), rule.settings_class.name
    recorded = max(standing.updates - 1, 0)  # the carried iteration's row is written once its update is judged
    recorder = Recorder(folder, configuration(name, rule, run), kept=recorded)
    scalars = Scalars(folder, since=standing.steps or None) if tensorboard else None
    title = f"{name} · {rule_name} · seed {run.seed}"
    begun = time.perf_counter() - standing.seconds
    saved = time.monotonic()
    unrecorded = standing.carried

    def record(view: Progress, judgement: dict[str, Any]) -> None:
        nonlocal unrecorded
        done, unrecorded = unrecorded, None
        if done is not None:
            row = settled(done.row) | judgement
            recorder.append(row)
            if scalars:
                scalars.append(row)
            view.show(row, done.returns)

    stopped = False
    try:
        with Progress(title, run.steps, trust_region=rule.settings_class.trust_region, shown=progress) as view:
            try:
                while standing.steps < run.steps and not stopped:
                    standing, judgement = _onward(source, rule, run, standing, begun)
                    record(view, judgement)
                    unrecorded = standing.carried
                    stopped = stop is not None and stop()
                    finished = standing.steps >= run.steps
                    if stopped or finished or time.monotonic() - saved >= run.checkpoint_seconds:
                        save(folder, source, standing)
                        saved = time.monotonic()
            finally:
                record(view, unjudged("no batch followed"))
    except SurefootError as error:
        _save(standing.learner, source, name, run, folder)
        write_report([folder])
        raise type(error)(f"{error} (what was recorded until then is in {folder})") from error
    except BaseException:
        _save(standing.learner, source, name, run, folder)
        raise
    finally:
        recorder.close()
        if scalars:
            scalars.close()
    trained = _save(standing.learner, source, name, run, folder)
    if stopped and standing.steps < run.steps:
        raise Stopped(f"stopped after update {standing.updates}; go on with: surefoot resume {folder}")
    result = evaluate(trained, environment, episodes=run.evaluation_episodes, seed=run.seed)
    recorder.write("evaluation.json", result | {"repeatable": _repeatable(trained, environment, run.seed)})
    write_report([folder])
    history = read(folder)
    findings, calibration = diagnose(history), calibrate(history)
    return Run(folder, standing.steps, standing.updates, standing.seconds, result, trained, findings, calibration)


def _onward(
    source: Source, rule: Rule, run: config.Run, standing: Standing, begun: float
) -> tuple[Standing, dict[str, Any]]:
    """Where the run stands one iteration later, and what that says of the update before."""
    learner, state, done = iterate(source, rule, run, standing.learner, standing.state)
    steps, updates = standing.steps + done.row["experience"], standing.updates + 1
    seconds = time.perf_counter() - begun
    row = {"update": updates, "steps": steps, "seconds": seconds, **done.row}
    return Standing(learner, state, done._replace(row=row), steps, updates, seconds), done.judgement


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
