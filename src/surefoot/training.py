"""The loop: collect, estimate, update, record."""

from __future__ import annotations

import contextlib
import os
import time
import uuid
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from surefoot import agent as artefact
from surefoot import config
from surefoot.calibration import Calibration, calibrate
from surefoot.compilation import keep_compiled_programs
from surefoot.compiled import Chunk, copied, fetched, how_many, inputs_again, iterations, numbers_of, program
from surefoot.doctor import Finding, diagnose
from surefoot.errors import RunError, SettingError, Stopped, SurefootError, did_you_mean
from surefoot.evaluation import evaluate, repeatable
from surefoot.files import held, write_atomically
from surefoot.guard import careful
from surefoot.history import read
from surefoot.iteration import Iteration, begin, iterate
from surefoot.kept import due, surely_not_due
from surefoot.ledger import Ledger, draw
from surefoot.progress import Progress
from surefoot.record import differing_versions, new_run_folder
from surefoot.report.curve import learning_curve
from surefoot.report.page import write_report
from surefoot.resuming import Begun, begun_with, newest, refuse_links
from surefoot.rules import RULES, Rule
from surefoot.settings import dumps
from surefoot.sharding import check_devices, spread_over
from surefoot.sources import caution, make_source, refuse_foreign_code
from surefoot.sources.base import Source
from surefoot.sources.environments import environment_name
from surefoot.sources.functional import FunctionalSource
from surefoot.standing import Standing, further, next_pause
from surefoot.tensorboard import writer_class


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        path: its folder.
        steps: environment steps taken (real transitions).
        updates: how many updates there were, refused ones included.
        seconds: wall time from the first collection to the last record.
        evaluation: {"return": {"mean", "std", "episodes"}, "length": {"mean"}, "cut"}, deterministic.
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
    told: Callable[[str], None] | None = None,
    **settings: Any,
) -> Run:
    """Train a policy, evaluate it and leave a run folder with a report.

    Arguments:
        environment: a Gymnasium id, `gymnax:…` or `brax:…`, `package.module:callable`, a callable that returns an
            environment, or a FunctionalEnvironment.
        rule: such as `surefoot.TRPO(radius=0.01)`, or a rule's name for its defaults.
        out: the run's folder; by default a new one under runs/.
        progress: show a panel (or lines, outside a terminal) on standard error.
        tensorboard: write every number of metrics.jsonl for TensorBoard too, into the run's `tensorboard` folder.
        stop: asked after every update, or about once a second where updates do not leave the compiler; where it says
            True, the run ends there with a checkpoint.
        told: is given a line for whatever of the run could not be written and is no loss, a picture for one; by
            default that is a warning.
        settings: any setting of `surefoot.config.Run` and its groups by name, such as `steps`, `seed`,
            `envs`, `horizon`, `discount`; the critic's are `critic_step_size` and so on.

    Raises SettingError, EnvironmentNotFound, UnsupportedSpace, RunError before anything is written, and
    EnvironmentFault while training, and RunError where the disk refuses what the run cannot do without; what was
    recorded until then is complete and loadable. Raises Stopped where `stop` ended the run.
    """
    run = config.make_run(**settings)
    rule = make_rule(rule)
    if run.certification.guard:
        careful(rule, 1.0)  # refused before anything is made where there is nothing to shorten
    if tensorboard:
        writer_class()  # refused before anything is made where it is not installed
    check_devices(run.collection.devices)
    keep_compiled_programs()
    source = make_source(environment, run.collection)
    try:
        standing = Standing(*begin(source, rule, run))
        name = environment_name(environment)
        folder = new_run_folder(out, f"{name}-{rule.settings_class.name}-s{run.seed}")
        with held(folder):
            begun = Begun(folder, uuid.uuid4().hex, name, standing, [])
            return _train(begun, environment, rule, run, source, progress, tensorboard, stop, told or warn)
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
    rule: Rule | None = None,
    allow_env: bool = False,
    ray_address: str | None = None,
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
        rule: the run's, where it is one of your own, which config.json knows by its name alone.
        allow_env: let the run's own package.module:callable environment be imported, which runs its code.
        ray_address: of the cluster that the run's workers are on, which the run's files do not say; by default
            RAY_ADDRESS, or this machine.
        progress, tensorboard, stop: as for `train`.
        told: is given a line for each checkpoint that is passed by because it is not sound, for other versions of what
            the bits depend on, and whatever `train` tells; by default each is a warning.

    Raises RunError where there is no run that can be gone on with, or another process trains in its folder, and
    whatever `train` raises.
    """
    folder = Path(path)
    recipe, known, run = begun_with(folder, steps)
    if rule is not None and rule.settings() != known.settings():
        raise SettingError(f"rule must be the one of {folder}, {known.settings()}, but {rule.settings()} came")
    rule = rule or known
    if ray_address is not None and run.collection.workers is None:
        raise SettingError(
            f"ray_address must be None for a run without workers, as {folder} is, but {ray_address!r} came"
        )
    if ray_address is not None:
        run = replace(run, collection=replace(run.collection, ray_address=ray_address))
    name = str(recipe.environment)
    refuse_links(folder)
    refuse_foreign_code(folder, name, allowed=allow_env or environment is not None)
    check_devices(run.collection.devices)
    if tensorboard:
        writer_class()
    told = told or warn
    with held(folder):
        if changed := differing_versions(recipe.versions):
            told(f"the bits may differ from those of an undisturbed run: {', '.join(changed)}")
        keep_compiled_programs()
        source = make_source(environment or name, run.collection)
        try:
            fresh = Standing(*begin(source, rule, run))
            begun = newest(Begun(folder, recipe.identity, name, fresh, []), source, told)
            taken = begun.standing.steps
            if steps is not None and steps < min(taken, recipe.settings.get("steps", taken)):
                raise SettingError(f"steps is a total, and must be at least the {taken} taken so far, but {steps} came")
            return _train(begun, environment or name, rule, run, source, progress, tensorboard, stop, told)
        finally:
            source.close()


def warn(line: str) -> None:
    """Tell a line as a warning."""
    warnings.warn(line, RuntimeWarning, stacklevel=2)


def _train(
    begun: Begun,
    environment: str | Callable[[], Any],
    rule: Rule,
    run: config.Run,
    source: Source,
    progress: bool,
    tensorboard: bool,
    stop: Callable[[], bool] | None,
    told: Callable[[str], None],
) -> Run:
    folder = begun.folder
    if line := caution(source):
        told(line)
    with _way_on(folder):
        standing, stopped, trained = _learn(begun, environment, rule, run, source, progress, tensorboard, stop, told)
        draw(learning_curve, folder, told)
        if stopped:
            raise Stopped(f"stopped after update {standing.updates}; go on with: surefoot resume {folder}")
        return conclude(folder, standing, trained, environment, run, told)


def conclude(
    folder: Path,
    standing: Standing,
    trained: artefact.Agent,
    environment: str | Callable[[], Any],
    run: config.Run,
    told: Callable[[str], None],
    *,
    pictures: bool = True,
) -> Run:
    """Evaluate what a run has learned and examine the run; with its pages and pictures where they are wanted.

    Raises EnvironmentFault, RunError.
    """
    seconds = run.collection.step_seconds
    result = evaluate(trained, environment, episodes=run.evaluation_episodes, seed=run.seed, step_seconds=seconds)
    evaluation = result | {"repeatable": _repeatable(trained, environment, run.seed, seconds)}
    write_atomically(folder / "evaluation.json", dumps(evaluation, indent=1).encode())
    if pictures:
        draw(lambda run: write_report([run]), folder, told)
    history = read(folder)
    findings, calibration = diagnose(history), calibrate(history)
    return Run(folder, standing.steps, standing.updates, standing.seconds, result, trained, findings, calibration)


def _learn(
    begun: Begun,
    environment: str | Callable[[], Any],
    rule: Rule,
    run: config.Run,
    source: Source,
    progress: bool,
    tensorboard: bool,
    stop: Callable[[], bool] | None,
    told: Callable[[str], None],
) -> tuple[Standing, bool, artefact.Agent]:
    """Learn until the last step or until `stop` says so: where the run stands then, whether it was stopped, and the
    agent, which is written."""
    trust_region = rule.settings_class.trust_region
    title = f"{begun.name} · {rule.settings_class.name} · seed {run.seed}"
    view = Progress(title, run.steps, trust_region=trust_region, shown=progress)
    ledger = Ledger(begun, source, rule, run, tensorboard=tensorboard, told=told, shown=view.show)
    started = time.perf_counter() - begun.standing.seconds
    onward = _onward(source, rule, run)
    stopped = False
    try:
        with view:
            try:
                while not ledger.finished and not stopped:
                    standing, made = onward(ledger.standing, started)
                    ledger.enter(standing, made)
                    if made:  # none where an environment failed at once: then nothing is new
                        started += ledger.evaluate_if_due(environment)
                    stopped = stop is not None and stop()
                    ledger.checkpoint(now=stopped or ledger.finished)
            except BaseException:
                with contextlib.suppress(RunError):  # what went wrong first is what has to be told
                    ledger.end()
                raise
            ledger.end()
        return ledger.standing, stopped, ledger.save_policy()
    except BaseException as error:
        ledger.rescue(error)
        raise
    finally:
        ledger.close()


@contextlib.contextmanager
def _way_on(folder: Path) -> Iterator[None]:
    """Say of what goes wrong with a run where its records are, or how to go on once it is mended."""
    try:
        yield
    except RunError as error:
        then = f"; then: surefoot resume {folder}" if (folder / "config.json").exists() else ""
        raise RunError(f"{error}{then}") from error
    except SurefootError as error:
        raise type(error)(f"{error} (what was recorded until then is in {folder})") from error


Onward = Callable[[Standing, float], tuple[Standing, list[Iteration]]]
"""From where a run stands and when it began to where it stands next, and the iterations that led there."""


def _onward(source: Source, rule: Rule, run: config.Run) -> Onward:
    """One iteration at a time, or as many as take about a second where the source is a function itself.

    The guard decides between two iterations on the host, so with it they are made one at a time.
    """
    if isinstance(source, FunctionalSource) and not run.certification.guard:
        return _compiled(source, rule, run)

    def onward(standing: Standing, started: float) -> tuple[Standing, list[Iteration]]:
        with spread_over(run.collection.devices):
            learner, state, done = iterate(source, rule, run, standing.learner, standing.state, standing.steps)
        return further(standing, [done], learner, state, time.perf_counter() - started, 0.0)

    return onward


def _compiled(source: FunctionalSource, rule: Rule, run: config.Run) -> Onward:
    chunk = program(source.environment, source.envs, source.horizon)
    numbers = numbers_of(rule, run, np.float32)
    pace: float | None = None
    last: Chunk | None = None

    def onward(standing: Standing, started: float) -> tuple[Standing, list[Iteration]]:
        nonlocal pace, last
        begun = time.perf_counter()
        learner, state = standing.learner, standing.state
        if last is None:
            learner, state = copied((learner, state))
        else:
            # Told one call late, when what was made until then is entered.
            source.check(last.fault, int(last.state.steps))
        size = source.envs * source.horizon
        free = surely_not_due(run, standing.steps, size)
        left = next_pause(standing, run.steps, run.evaluate_every) - standing.steps
        count = min(how_many(left, size, pace), max(free, 1))
        before = None if free else copied((learner, state))  # where the iteration begins that may be kept
        made = fetched(source.name, chunk, numbers, learner, state, count, count)
        each = iterations(made, rule, run)
        spent = time.perf_counter() - begun
        pace, last = None if last is None else count / spent, made
        if before is not None and each and due(run, standing.steps, standing.steps + each[0].row["experience"]):
            each[0] = each[0]._replace(inputs=inputs_again(source, *before, numbers.run))
        return further(standing, each, made.learner, made.state, begun - started, spent)

    return onward


def _repeatable(agent: artefact.Agent, environment: Any, seed: int, step_seconds: float | None) -> bool | None:
    """Whether the environment repeats under its seed; None where it fails, which must not cost a finished run."""
    try:
        return repeatable(agent, environment, seed=seed, step_seconds=step_seconds)
    except SurefootError:
        return None
