"""The loop: collect, estimate, update, record."""

from __future__ import annotations

import contextlib
import os
import time
import uuid
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from surefoot import agent as artefact
from surefoot import checkpoint, config
from surefoot.calibration import Calibration, calibrate
from surefoot.compilation import keep_compiled_programs
from surefoot.compiled import how_many, iterations, make_chunk
from surefoot.doctor import Finding, diagnose
from surefoot.errors import RunError, SettingError, Stopped, SurefootError, did_you_mean
from surefoot.evaluation import evaluate, repeatable
from surefoot.files import held, make_folder, move, remove, write_atomically
from surefoot.guard import careful
from surefoot.history import read
from surefoot.iteration import Iteration, Learner, begin, iterate, settled, unjudged
from surefoot.progress import Progress
from surefoot.recipe import Recipe, read_recipe
from surefoot.record import Recorder, differing_versions, new_run_folder, rows_missing, whole_lines
from surefoot.report.curve import learning_curve
from surefoot.report.page import write_report
from surefoot.rules import RULES, Rule
from surefoot.settings import as_json, dumps
from surefoot.sources import caution, make_source, refuse_foreign_code
from surefoot.sources.base import Source
from surefoot.sources.environments import environment_name
from surefoot.sources.functional import FunctionalSource
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
        stop: asked after every update; where it says True, the run ends there with a checkpoint.
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
    keep_compiled_programs()
    source = make_source(environment, run.collection)
    try:
        standing = Standing(*begin(source, rule, run))
        name = environment_name(environment)
        folder = new_run_folder(out, f"{name}-{rule.settings_class.name}-s{run.seed}")
        with held(folder):
            begun = _Begun(folder, uuid.uuid4().hex, name, standing, [])
            return _train(begun, environment, rule, run, source, progress, tensorboard, stop, told or _warn)
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
        told: is given a line for each checkpoint that is passed by because it is not sound, for other versions of what
            the bits depend on, and whatever `train` tells; by default each is a warning.

    Raises RunError where there is no run that can be gone on with, or another process trains in its folder, and
    whatever `train` raises.
    """
    folder = Path(path)
    recipe, rule, run = begun_with(folder, steps)
    name = str(recipe.environment)
    _refuse_links(folder)
    refuse_foreign_code(folder, name, allowed=allow_env or environment is not None)
    if tensorboard:
        writer_class()
    told = told or _warn
    with held(folder):
        if changed := differing_versions(recipe.versions):
            told(f"the bits may differ from those of an undisturbed run: {', '.join(changed)}")
        keep_compiled_programs()
        source = make_source(environment or name, run.collection)
        try:
            fresh = Standing(*begin(source, rule, run))
            begun = _newest(_Begun(folder, recipe.identity, name, fresh, []), source, told)
            taken = begun.standing.steps
            if steps is not None and steps < min(taken, recipe.settings.get("steps", taken)):
                raise SettingError(f"steps is a total, and must be at least the {taken} taken so far, but {steps} came")
            return _train(begun, environment or name, rule, run, source, progress, tensorboard, stop, told)
        finally:
            source.close()


class _Begun(NamedTuple):
    """A run's folder, identity and environment's name, where it stands, and the updates of its sound checkpoints."""

    folder: Path
    identity: str
    name: str
    standing: Standing
    sound: list[int]


def _newest(begun: _Begun, source: Source, told: Callable[[str], None]) -> _Begun:
    """The run as its newest sound checkpoint has it whose rows are all there; as it was begun where it has none.

    Raises RunError where metrics.jsonl has lost the rows of every sound checkpoint.
    """
    lines: list[str] = []
    metrics = begun.folder / "metrics.jsonl"
    rows = len(whole_lines(metrics)) if metrics.exists() else 0
    short: RunError | None = None
    for one in checkpoint.found(begun.folder, begun.identity, lines.append):
        try:
            standing = load(one, source, begun.standing)
        except RunError as error:
            lines.append(str(error))
            continue
        if missing := rows_missing(metrics, rows, standing.updates - 1):
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


_RESULTS = ("metrics.jsonl", "evaluation.json", "policy")


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


def _refuse_links(folder: Path) -> None:
    """Raise RunError where part of a run is a link: going on would write wherever it leads."""
    for inside, folders, files in os.walk(folder):
        for name in (*folders, *files):
            if os.path.islink(os.path.join(inside, name)):
                raise RunError(f"{os.path.join(inside, name)} is a link; put what it leads to in its place to go on")


def _warn(line: str) -> None:
    warnings.warn(line, RuntimeWarning, stacklevel=2)


def _train(
    begun: _Begun,
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
        standing, stopped = _learn(begun, rule, run, source, progress, tensorboard, stop, told)
        trained = _save_policy(standing.learner, source, begun.name, run, folder)
        _draw(learning_curve, folder, told)
        if stopped:
            raise Stopped(f"stopped after update {standing.updates}; go on with: surefoot resume {folder}")
        seconds = run.collection.step_seconds
        result = evaluate(trained, environment, episodes=run.evaluation_episodes, seed=run.seed, step_seconds=seconds)
        evaluation = result | {"repeatable": _repeatable(trained, environment, run.seed, seconds)}
        write_atomically(folder / "evaluation.json", dumps(evaluation, indent=1).encode())
        _draw(lambda run: write_report([run]), folder, told)
        history = read(folder)
    findings, calibration = diagnose(history), calibrate(history)
    return Run(folder, standing.steps, standing.updates, standing.seconds, result, trained, findings, calibration)


def _learn(
    begun: _Begun,
    rule: Rule,
    run: config.Run,
    source: Source,
    progress: bool,
    tensorboard: bool,
    stop: Callable[[], bool] | None,
    told: Callable[[str], None],
) -> tuple[Standing, bool]:
    """Learn until the last step or until `stop` says so: where the run stands then, and whether it was stopped."""
    folder, identity, name, standing, sound = begun
    if standing.steps < run.steps:
        remove(folder / "evaluation.json")  # of a policy that is not the run's last any more
    recorded = max(standing.updates - 1, 0)  # the carried iteration's row is written once its update is judged
    recorder = Recorder(folder, configuration(name, rule, run) | {"id": identity}, kept=recorded)
    scalars = Scalars(folder, told, since=standing.steps or None) if tensorboard else None
    title = f"{name} · {rule.settings_class.name} · seed {run.seed}"
    started = time.perf_counter() - standing.seconds
    saved = time.monotonic()
    unrecorded = standing.carried
    onward = _onward(source, rule, run)

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
                    standing, made = onward(standing, started)
                    for done in made:
                        record(view, done.judgement)
                        unrecorded = done
                    stopped = stop is not None and stop()
                    finished = standing.steps >= run.steps
                    if stopped or finished or time.monotonic() - saved >= run.checkpoint_seconds:
                        recorder.sync()
                        sound = save(folder, identity, source, standing, sound)
                        saved = time.monotonic()
            except BaseException:
                with contextlib.suppress(RunError):  # what went wrong first is what has to be told
                    record(view, unjudged(_LAST))
                raise
            record(view, unjudged(_LAST))
    except BaseException as error:
        if folder.is_dir():  # not made anew where somebody removed it
            # One that is there already may be newer than the checkpoint that was gone on from.
            newer = standing.updates > begun.standing.updates or not (folder / "policy" / "policy.json").exists()
            with contextlib.suppress(RunError):
                if newer:
                    _save_policy(standing.learner, source, name, run, folder)
            if isinstance(error, SurefootError) and not isinstance(error, RunError):
                _draw(learning_curve, folder, _quiet)
                _draw(lambda run: write_report([run]), folder, _quiet)
        raise
    finally:
        recorder.close()
        if scalars:
            scalars.close()
    return standing, stopped


_LAST = "no batch followed"


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


def _draw(draw: Callable[[Path], Any], folder: Path, told: Callable[[str], None]) -> None:
    """Draw what can be drawn again: where that fails, the run is no less done."""
    try:
        draw(folder)
    except SurefootError as error:
        told(f"{error}; the run is whole without it, and surefoot resume {folder} makes it anew")


def _quiet(line: str) -> None:
    """Something worse is told already."""


Onward = Callable[[Standing, float], tuple[Standing, list[Iteration]]]
"""From where a run stands and when it began to where it stands next, and the iterations that led there."""


def _onward(source: Source, rule: Rule, run: config.Run) -> Onward:
    """One iteration at a time, or as many as take about a second where the source is a function itself.

    The guard decides between two iterations on the host, so with it they are made one at a time.
    """
    if isinstance(source, FunctionalSource) and not run.certification.guard:
        return _compiled(source, rule, run)

    def onward(standing: Standing, started: float) -> tuple[Standing, list[Iteration]]:
        learner, state, done = iterate(source, rule, run, standing.learner, standing.state)
        done = _numbered(done, standing, time.perf_counter() - started)
        return _after(done, learner, state), [done]

    return onward


def _compiled(source: FunctionalSource, rule: Rule, run: config.Run) -> Onward:
    chunk = make_chunk(source, rule, run)
    pace: float | None = None
    compiled = False

    def onward(standing: Standing, started: float) -> tuple[Standing, list[Iteration]]:
        nonlocal pace, compiled
        begun = time.perf_counter()
        count = how_many(run.steps - standing.steps, source.envs * source.horizon, pace)
        made = chunk(standing.learner, standing.state, count)
        each = iterations(made, run)
        if not each:
            source.check(made.fault, int(made.state.steps))
        spent = time.perf_counter() - begun
        if compiled:
            pace = len(each) / spent
        compiled = True
        for index, one in enumerate(each):
            each[index] = one = _numbered(one, standing, begun - started + spent * (index + 1) / len(each))
            standing = _after(one, made.learner, made.state)
        return standing, each

    return onward


def _numbered(done: Iteration, before: Standing, seconds: float) -> Iteration:
    """The iteration with its place in the run in its row."""
    place = {"update": before.updates + 1, "steps": before.steps + done.row["experience"], "seconds": seconds}
    return done._replace(row=place | done.row)


def _after(done: Iteration, learner: Learner, state: Any) -> Standing:
    row = done.row
    return Standing(learner, state, done, row["steps"], row["update"], row["seconds"])


def _repeatable(agent: artefact.Agent, environment: Any, seed: int, step_seconds: float | None) -> bool | None:
    """Whether the environment repeats under its seed; None where it fails, which must not cost a finished run."""
    try:
        return repeatable(agent, environment, seed=seed, step_seconds=step_seconds)
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


def _save_policy(learner: Learner, source: Source, name: str, run: config.Run, folder: Path) -> artefact.Agent:
    agent = artefact.Agent(learner.policy, source.observation_space, source.action_space, name)
    make_folder(folder / "policy")
    artefact.save(agent, folder / "policy", run.network)
    return agent
