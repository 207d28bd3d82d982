"""Ten thousand broken inputs: each is understood, or refused in one line.

`pytest -m long tests/test_fuzz.py` tries them all, in a few minutes; the quick suite tries a fiftieth of them.
The seed is printed; SUREFOOT_TEST_SEED repeats it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import io
import json
import os
import resource
import secrets
import signal
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium
import hypothesis
import jax
import numpy as np
import pytest
from hypothesis import strategies as st

import fuzzing
import histories
import surefoot as sf
from surefoot import (
    agent,
    checkpoint,
    cli,
    config,
    evaluation,
    improvement,
    lecture,
    ledger,
    standing,
    studies,
    training,
)
from surefoot.advantage import estimate
from surefoot.batch import Trajectory
from surefoot.certificate import certify
from surefoot.distributions import Categorical
from surefoot.errors import SettingError, SurefootError, UnsupportedSpace
from surefoot.policy import make_policy
from surefoot.reading import parse_json
from surefoot.report import exact as exact_picture
from surefoot.report.curve import learning_curve
from surefoot.rules import RULES
from surefoot.settings import dumps
from surefoot.spaces import describe, lawful, make_encoder, make_head, parse
from surefoot.tabular.files import read_mdp
from tiny import TINY

SECONDS = 30  # for one input; a healthy one takes a tenth of a second
MEMORY = 8 * 2**30  # that all of them together may ask for, beyond what is there at the beginning

tried: Counter[str] = Counter()


class House(NamedTuple):
    """Files that are as they should be.

    Attributes:
        run: a run's folder, with a checkpoint.
        recorded: a run's folder with 40 updates, none of which was ever made.
        policies: folders of policies for different spaces.
        tables: a folder with finite MDPs and policies for them.
        files: the contents of them all.
        going_on: what a resume makes before it looks at the checkpoints.
    """

    run: Path
    recorded: Path
    policies: list[Path]
    tables: Path
    files: dict[Path, bytes]
    going_on: Any

    @property
    def identity(self) -> str:
        """The run's, that its checkpoints have too."""
        return json.loads(self.files[self.run / "config.json"])["id"]

    @property
    def others(self) -> list[bytes]:
        """What may stand in another file's place."""
        return [content for content in self.files.values() if len(content) < 50_000]


SPACES = {
    "box": (gymnasium.spaces.Box(-1, 1, (3,)), gymnasium.spaces.Box(-2, 2, (2,))),
    "mixed": (
        gymnasium.spaces.Dict(
            {
                "a": gymnasium.spaces.Discrete(3, start=1),
                "b": gymnasium.spaces.Tuple([gymnasium.spaces.MultiBinary(2), gymnasium.spaces.Box(-1, np.inf, (1,))]),
            }
        ),
        gymnasium.spaces.MultiDiscrete([2, 3]),
    ),
}


@pytest.fixture(scope="module")
def house(tmp_path_factory) -> Iterator[House]:
    folder = tmp_path_factory.mktemp("house")
    settings = TINY | {"source": "gymnasium"}
    sf.train("CartPole-v1", "pg", out=folder / "run", steps=32, **settings)
    histories.write_run(folder / "recorded", evaluations=histories.EVALUATIONS)
    for name, spaces in SPACES.items():
        network = config.Network(hidden=(4,))
        made = agent.Agent(make_policy(*spaces, network, jax.random.key(0)), *spaces, environment="CartPole-v1")
        agent.save(made, folder / name / "policy", network)
    tables = folder / "tables"
    tables.mkdir()
    mdp = sf.tabular.load("three-decisions")
    told = {"transition": mdp.transition.tolist(), "reward": mdp.reward.tolist(), "start": mdp.start.tolist()}
    (tables / "mdp.json").write_text(json.dumps(told | {"discount": 0.5, "horizon": mdp.horizon}))
    dense = {"transition": mdp.transition, "reward": mdp.reward, "start": mdp.start, "discount": np.array(0.9)}
    (tables / "dense.npz").write_bytes(fuzzing.npz(dense))
    sparse = sf.tabular.load("FrozenLake-v1")
    sf.tabular.save_mdp(sparse, tables / "sparse.npz")
    np.save(tables / "old.npy", np.full((mdp.states, mdp.actions), 1 / mdp.actions))
    np.save(tables / "new.npy", np.eye(mdp.actions)[np.arange(mdp.states) % mdp.actions])
    files = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    recipe, rule, run = training.begun_with(folder / "run")
    source = training.make_source(recipe.environment, run.collection)
    begun = training.begin(source, rule, run)
    policies = [folder / name for name in SPACES]
    # Of what the machine may give one process; JAX alone reserves gigabytes that it never touches.
    before = resource.getrlimit(resource.RLIMIT_AS)
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + MEMORY, before[1]))
    yield House(folder / "run", folder / "recorded", policies, tables, files, (source, begun))
    resource.setrlimit(resource.RLIMIT_AS, before)
    source.close()


# What an input may lead to.


def one_line(error: BaseException) -> None:
    message = str(error)
    assert message.strip()
    assert len(message.splitlines()) == 1, message


def refused_or(kind: type[SurefootError], function: Callable[[], Any]) -> Any:
    """What the function returns; None where it refused in one line."""
    try:
        return function()
    except kind as error:
        one_line(error)
        return None


def command(*argv: str | Path) -> int:
    """Run a command; what it tells is text, and one line where it refuses."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = cli.main([str(word) for word in argv])
    told = err.getvalue()
    assert code in (0, 1, 2), told
    out.getvalue().encode()
    told.encode()
    if code == 2:
        assert out.getvalue() == ""
        refusal = told.splitlines()[-1]
        assert refusal.startswith("surefoot: ")
        assert refusal.isprintable()
        notes = tuple(f"surefoot: {note}" for note in fuzzing.NOTES)
        assert all(line.startswith(notes) for line in told.splitlines()[:-1])
    else:
        assert "Traceback" not in told
    return code


class Reached(SurefootError):
    """In place of what an input is fuzzed up to."""


def reached(*_: Any, **__: Any) -> Any:
    raise Reached("reached")


@contextlib.contextmanager
def in_place(contents: dict[Path, bytes], pristine: dict[Path, bytes]) -> Iterator[None]:
    for file, content in contents.items():
        file.write_bytes(content)
    try:
        yield
    finally:
        for file in contents:
            file.write_bytes(pristine[file])


# Kinds of input: a strategy of cases, and what is done with one.


def settings_cases(_: House) -> st.SearchStrategy:
    rules = [(name, [item.name for item in dataclasses.fields(rule)]) for name, rule in config.RULES.items()]
    return st.one_of(
        st.tuples(st.none(), fuzzing.settings_of(list(config.run_options()))),
        *(st.tuples(st.just(name), fuzzing.settings_of([*fields, "radius"])) for name, fields in rules),
    )


def settings_hold(_: House, case: tuple[str | None, dict[str, Any]]) -> None:
    name, settings = case
    if name is None:
        run = refused_or(SettingError, lambda: config.make_run(**settings))
        if run is not None:
            dumps(ledger.configuration("CartPole-v1", sf.TRPO(), run))
        return
    known = {item.name: settings[item.name] for item in dataclasses.fields(config.RULES[name]) if item.name in settings}
    if refused_or(SettingError, lambda: config.RULES[name](**known)) is not None:
        refused_or(SettingError, lambda: RULES[name](**known))


def command_cases(house: House) -> st.SearchStrategy:
    parsers = cli.build_parser()._subparsers._group_actions[0].choices
    options = {name: sorted(parser._option_string_actions) for name, parser in parsers.items()}
    subjects = [
        *map(str, (house.run, house.recorded, *house.policies, house.tables / "mdp.json", house.tables / "sparse.npz")),
        *map(str, (house.tables / "old.npy", house.tables / "new.npy", house.tables / "no.npz", house.tables)),
        *("CartPole-v1", "garnet", "chain", "FrozenLake-v1", "no_such_module:make", "CartPol-v1", "a" * 300),
    ]
    return fuzzing.command_lines(options, subjects)


def command_holds(house: House, argv: list[str]) -> None:
    before = {file: house.files.get(file) for file in house.files}
    command(*argv)
    for file, content in before.items():
        if file.name not in ("report.html", "learning_curve.png"):
            assert file.read_bytes() == content, f"{file} is not as it was"


def run_files(folder: Path, house: House) -> st.SearchStrategy:
    def broken(name: str) -> st.SearchStrategy:
        content = house.files[folder / name]
        if name.endswith(".jsonl"):
            changed = st.one_of(fuzzing.broken_lines(content), fuzzing.broken_lines(content))
        else:
            changed = fuzzing.broken_json(json.loads(content))
        either = st.one_of(changed, changed, fuzzing.broken_bytes(content, house.others))
        return either.map(lambda made: {folder / name: made})

    names = ["config.json", "metrics.jsonl", "metrics.jsonl", "evaluations.jsonl", "evaluation.json"]
    return st.sampled_from(names).flatmap(broken)


def doctor_holds(house: House, case: dict[Path, bytes]) -> None:
    with in_place(case, house.files):
        command("doctor", house.recorded)


def report_holds(house: House, case: dict[Path, bytes]) -> None:
    with in_place(case, house.files):
        command("report", house.recorded)


def picture_holds(house: House, case: dict[Path, bytes]) -> None:
    with in_place(case, house.files):
        refused_or(SurefootError, lambda: learning_curve(house.recorded))


def policy_cases(house: House) -> st.SearchStrategy:
    def broken(folder: Path) -> st.SearchStrategy:
        description, tensors = (folder / "policy" / f"policy.{kind}" for kind in ("json", "safetensors"))
        told = json.loads(house.files[description])

        def fitting(made: bytes) -> dict[Path, bytes]:
            return {tensors: made, description: fuzzing.described_again(told, made)}

        def sealed(made: bytes) -> bytes:
            try:
                return fuzzing.described_again(json.loads(made), house.files[tensors])
            except (ValueError, RecursionError):
                return made

        texts = st.one_of(
            fuzzing.broken_json(told).map(sealed), fuzzing.broken_bytes(house.files[description], house.others)
        )
        blobs = fuzzing.broken_tensors(house.files[tensors], house.others)
        return st.one_of(
            texts.map(lambda made: {description: made}),
            texts.map(lambda made: {description: made}),
            blobs.map(fitting),
            blobs.map(lambda made: {tensors: made}),
        )

    return st.sampled_from(house.policies).flatmap(broken)


def policy_holds(house: House, case: dict[Path, bytes]) -> None:
    folder = next(iter(case)).parent.parent
    with in_place(case, house.files):
        found = refused_or(SurefootError, lambda: sf.load(folder))
    if found is not None:
        # A space may hold nothing that can be acted on: a Box from inf to inf.
        action = refused_or(SettingError, lambda: found.act(found.observation_space.sample()))
        assert action is None or found.action_space.contains(action if action.ndim else action[()])


def recipe_holds(house: House, case: dict[Path, bytes]) -> None:
    with in_place(case, house.files):
        command("train", "--config", house.recorded / "config.json", "--json")


def recipe_cases(house: House) -> st.SearchStrategy:
    file, content = house.recorded / "config.json", house.files[house.run / "config.json"]
    either = st.one_of(fuzzing.broken_json(json.loads(content)), fuzzing.broken_bytes(content, house.others))
    return either.map(lambda made: {file: made})


def evaluate_holds(house: House, case: dict[Path, bytes]) -> None:
    folder = next(iter(case)).parent.parent
    with in_place(case, house.files):
        command("evaluate", folder)


def checkpoint_cases(house: House) -> st.SearchStrategy:
    file = next(file for file in house.files if file.parent == house.run / "checkpoints" and file.suffix == ".json")
    tensors = file.with_suffix(".safetensors")
    told = json.loads(house.files[file])

    def sealed(made: bytes, blob: bytes) -> dict[Path, bytes]:
        """A checkpoint that is as it was written, but was written by someone who means no good."""
        try:
            described = json.loads(made)
            described.pop("digest", None)
            described |= {"bytes": len(blob), "sha256": hashlib.sha256(blob).hexdigest()}
            made = checkpoint._sealed(described)
        except (ValueError, AttributeError, TypeError, RecursionError):
            pass
        return {file: made, tensors: blob}

    texts = st.one_of(fuzzing.broken_json(told), fuzzing.broken_bytes(house.files[file], house.others))
    facts = fuzzing.broken_json(told["facts"]).map(
        lambda made: json.dumps(told | {"facts": None}).encode().replace(b'"facts": null', b'"facts": ' + made)
    )
    blobs = fuzzing.broken_tensors(house.files[tensors], house.others)
    settings = house.run / "config.json"
    content = house.files[settings]
    return st.one_of(
        texts.map(lambda made: {file: made}),
        facts.map(lambda made: sealed(made, house.files[tensors])),
        blobs.map(lambda made: {tensors: made}),
        blobs.map(lambda made: sealed(house.files[file], made)),
        fuzzing.broken_json(json.loads(content)).map(lambda made: {settings: made}),
        fuzzing.broken_json(json.loads(content)).map(lambda made: {settings: made}),
        fuzzing.broken_bytes(content, house.others).map(lambda made: {settings: made}),
    )


def resume_holds(house: House, case: dict[Path, bytes]) -> None:
    with in_place(case, house.files):
        command("resume", house.run, "--json")


def checkpoint_holds(house: House, case: dict[Path, bytes]) -> None:
    source, (learner, state) = house.going_on
    with in_place(case, house.files):
        told: list[str] = []
        found = next(checkpoint.found(house.run, house.identity, told.append), None)
        assert all(len(line.splitlines()) == 1 for line in told)
        if found is not None:
            refused_or(SurefootError, lambda: standing.load(found, source, standing.Standing(learner, state)))


def table_cases(house: House) -> st.SearchStrategy:
    text, dense, sparse = (house.tables / name for name in ("mdp.json", "dense.npz", "sparse.npz"))
    with np.load(sparse) as opened:
        held = dict(opened)
    with np.load(dense) as opened:
        plain = dict(opened)
    others = house.others
    return st.one_of(
        fuzzing.broken_json(json.loads(house.files[text])).map(lambda made: (text, made)),
        fuzzing.broken_bytes(house.files[text], others).map(lambda made: (text, made)),
        fuzzing.archives(plain).map(lambda made: (dense, made)),
        fuzzing.archives(held).map(lambda made: (sparse, made)),
        fuzzing.broken_bytes(house.files[dense], others).map(lambda made: (dense, made)),
        fuzzing.broken_bytes(house.files[sparse], others).map(lambda made: (sparse, made)),
        *(
            st.one_of(
                fuzzing.arrays(np.load(house.tables / name)).map(fuzzing.npy),
                fuzzing.broken_bytes(house.files[house.tables / name], others),
            ).map(lambda made, name=name: (house.tables / name, made))
            for name in ("old.npy", "new.npy")
        ),
    )


def table_holds(house: House, case: tuple[Path, bytes]) -> None:
    file, _ = case
    mdp = house.tables / "mdp.json" if file.suffix == ".npy" else file
    with in_place(dict([case]), house.files):
        command("certify", mdp, "--old", house.tables / "old.npy", "--new", house.tables / "new.npy")
        if file.suffix != ".npy" and refused_or(SurefootError, lambda: read_mdp(file)) is not None:
            command("exact", file, "--updates", "1", "--rule", "pi", "--json")


def spaces_hold(_: House, space: gymnasium.Space) -> None:
    described = refused_or(UnsupportedSpace, lambda: describe(space))
    if described is not None:
        again = parse(parse_json(dumps(described)))
        assert again == space
        assert describe(again) == described
    space.seed(0)
    encoder = refused_or(UnsupportedSpace, lambda: make_encoder(space))
    if encoder is not None:
        sample = {"observation": space.sample()}["observation"]
        features = np.asarray(encoder(jax.tree.map(np.asarray, sample), np.float64))
        assert features.shape == (encoder.width,) == encoder.normalised.shape
        assert np.isfinite(features).all()
    made = refused_or(UnsupportedSpace, lambda: make_head(space))
    if made is not None:
        head, action_map = made
        noise = head.noise((), np.random.default_rng(0)).astype(np.float32)
        log_std = np.zeros(head.outputs, np.float32) if head.gaussian else None
        sampled = head.action(np.zeros(head.outputs, np.float32), log_std, None, noise)
        action = lawful(np.asarray(action_map(np.asarray(sampled))), space)
        assert space.contains(action if action.ndim else action[()])


def trajectory_cases(_: House) -> st.SearchStrategy:
    shape = st.sampled_from([(1, 1), (6, 2), (9, 3)])
    factor = st.one_of(st.sampled_from([0.0, 0.99, 0.5]), st.floats(0, 0.999))
    ends = st.sampled_from([0.0, 0.1, 0.5, 1.0])
    scale = st.sampled_from([0.0, 1.0, 1e-6, 1e6, 1e12])
    return st.tuples(shape, factor, factor, ends, ends, scale, st.integers(0, 2**32 - 1), st.booleans())


@functools.partial(jax.jit, static_argnames="weighting")
def estimated(trajectory: Trajectory, value: Any, old: Any, discount: Any, gae_lambda: Any, weighting: Any) -> Any:
    return estimate(trajectory, value, old, discount=discount, gae_lambda=gae_lambda, weighting=weighting)


def trajectory_holds(_: House, case: Any) -> None:
    (steps, envs), discount, gae_lambda, ending, cutting, scale, seed, discounted = case
    random = np.random.default_rng(seed)
    terminated, truncated = random.random((steps, envs)) < ending, random.random((steps, envs)) < cutting
    reset = np.zeros((steps, envs), bool)
    for step in range(1, steps):
        reset[step] = (terminated | truncated)[step - 1] & ~reset[step - 1]
    terminated, truncated = terminated & ~reset, truncated & ~reset
    reward = np.where(reset, 0, scale * random.standard_normal((steps, envs)))
    value = scale * random.standard_normal((steps + 1, envs))
    time = random.integers(0, 1000, (steps, envs))
    with jax.enable_x64(True):
        old = Categorical(random.standard_normal((steps, envs, 3)), None)
        action = random.integers(0, 3, (steps, envs))
        trajectory = Trajectory(
            observation=random.standard_normal((steps + 1, envs, 2)),
            mask=None,
            action=action,
            log_prob=np.asarray(old.log_prob(action)),
            reward=reward,
            terminated=terminated,
            truncated=truncated,
            reset=reset,
            time=time,
        )
        weighting = "discounted" if discounted else "undiscounted"
        batch, target = estimated(trajectory, value, old, discount, gae_lambda, weighting)
        batch, target = jax.device_get((batch, target))
    expected = by_definition(reward, value, terminated, truncated, discount, gae_lambda)
    weight = np.where(reset, 0, discount**time if discounted else 1.0)
    near = {"rtol": 1e-9, "atol": 1e-9 * max(scale, 1e-300)}
    known = (weight > 1e-200).ravel()  # powers next to nothing are nothing to some compilers
    np.testing.assert_allclose(batch.advantage[known], expected.ravel()[known], **near)
    assert not batch.advantage[reset.ravel()].any()
    assert not batch.weight[reset.ravel()].any()
    np.testing.assert_allclose(target[~reset.ravel()], (expected + value[:-1])[~reset].ravel(), **near)
    if weight.sum() > 1e-290:
        lost = 1e-300 / weight.sum()  # what the smallest power that every compiler keeps is of the sum
        np.testing.assert_allclose(batch.weight, (weight / weight.sum()).ravel(), rtol=1e-9, atol=max(lost, 1e-200))
    assert np.isfinite(batch.advantage).all()
    assert not batch.observation[batch.weight == 0].any()


def by_definition(reward: Any, value: Any, terminated: Any, truncated: Any, discount: float, decay: float) -> Any:
    """Advantages as the sum that defines them, one row and one environment at a time."""
    steps, envs = reward.shape
    advantage = np.zeros((steps, envs))
    for env in range(envs):
        for first in range(steps):
            for step in range(first, steps):
                bootstrap = 0.0 if terminated[step, env] else discount * value[step + 1, env]
                error = reward[step, env] + bootstrap - value[step, env]
                advantage[first, env] += (discount * decay) ** (step - first) * error
                if terminated[step, env] or truncated[step, env]:
                    break
    return advantage


def certify_cases(house: House) -> st.SearchStrategy:
    mdp = sf.tabular.load("three-decisions")
    policy = np.full((mdp.states, mdp.actions), 1 / mdp.actions)
    given = st.one_of(
        fuzzing.arrays(policy),
        st.sampled_from([policy.tolist(), None, "uniform", [[1]], [[1, 0], [1]], {}, mdp, 10**400]),
    )
    parts = st.tuples(
        fuzzing.arrays(np.asarray(mdp.transition)),
        fuzzing.arrays(np.asarray(mdp.reward)),
        st.one_of(fuzzing.arrays(np.array(0.9)), st.sampled_from([0.9, 0.9, "x", None, [0.9], 1j, 10**400])),
        st.one_of(fuzzing.arrays(np.asarray(mdp.start)), st.sampled_from([0, 1, -1, 99, 0.5, None, "0"])),
        st.one_of(st.just(3), st.sampled_from([None, 1, 0, -1, 2.5, "3", 10**12, 1e300, True, [3]])),
    )
    return st.one_of(st.tuples(st.just("policies"), given, given), st.tuples(st.just("model"), parts, given))


def certify_holds(_: House, case: Any) -> None:
    kind, first, second = case
    mdp = sf.tabular.load("three-decisions")
    if kind == "policies":
        told = refused_or(SurefootError, lambda: certify(first, second, mdp))
    else:
        made = refused_or(SurefootError, lambda: sf.tabular.MDP(*first))
        told = None if made is None else refused_or(SurefootError, lambda: certify(second, made.uniform(), made))
    if told is not None:
        dumps(told.as_dict())


class Kind(NamedTuple):
    count: int
    cases: Callable[[House], st.SearchStrategy]
    hold: Callable[[House, Any], None]


KINDS = {
    "settings": Kind(1500, settings_cases, settings_hold),
    "command lines": Kind(1200, command_cases, command_holds),
    "doctor's files": Kind(1300, lambda house: run_files(house.recorded, house), doctor_holds),
    "report's files": Kind(600, lambda house: run_files(house.recorded, house), report_holds),
    "pictures' files": Kind(50, lambda house: run_files(house.recorded, house), picture_holds),
    "policies": Kind(1100, policy_cases, policy_holds),
    "evaluate's files": Kind(500, policy_cases, evaluate_holds),
    "resume's files": Kind(600, checkpoint_cases, resume_holds),
    "checkpoints": Kind(800, checkpoint_cases, checkpoint_holds),
    "settings' files": Kind(400, recipe_cases, recipe_holds),
    "finite MDPs": Kind(900, table_cases, table_holds),
    "spaces": Kind(600, lambda house: fuzzing.ANY_SPACE, spaces_hold),
    "trajectories": Kind(400, trajectory_cases, trajectory_holds),
    "certify's arrays": Kind(600, certify_cases, certify_holds),
}


def too_long(*_: Any) -> None:
    raise AssertionError(f"longer than {SECONDS} seconds")


def attempt(name: str, count: int, house: House, seed: int) -> None:
    """Try so many inputs of a kind."""
    kind = KINDS[name]

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=count,
        database=None if "CI" in os.environ else hypothesis.settings.default.database,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(kind.cases(house))
    def holds(case: Any) -> None:
        tried[name] += 1
        signal.setitimer(signal.ITIMER_REAL, SECONDS)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                warnings.filterwarnings("error", module="surefoot")
                kind.hold(house, case)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)

    holds()


@pytest.fixture
def fenced(house, monkeypatch, tmp_path) -> House:
    """The house, with nothing behind it: what reads an input is real, what would act on it is not."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, "build_parser", functools.cache(cli.build_parser))  # half of what an input takes
    monkeypatch.setattr(training, "train", reached)
    monkeypatch.setattr(training, "_train", reached)
    monkeypatch.setattr(studies, "study", reached)
    monkeypatch.setattr(training, "make_source", lambda *_: house.going_on[0])
    monkeypatch.setattr(training, "begin", lambda *_: house.going_on[1])
    monkeypatch.setattr(house.going_on[0], "close", lambda: None, raising=False)
    monkeypatch.setattr(evaluation, "evaluate", reached)
    monkeypatch.setattr(improvement, "improve", lambda *_, **__: ())
    monkeypatch.setattr(exact_picture, "picture", lambda folder: folder / "exact.png")
    monkeypatch.setattr(lecture, "write_page", reached)
    before = signal.signal(signal.SIGALRM, too_long), signal.getsignal(signal.SIGTERM)
    yield house
    signal.signal(signal.SIGALRM, before[0])
    signal.signal(signal.SIGTERM, before[1])


@pytest.mark.parametrize("name", KINDS)
def test_a_broken_input_is_understood_or_refused_in_one_line(name, fenced, seed):
    attempt(name, max(KINDS[name].count // 50, 2), fenced, seed)


@pytest.mark.long
@pytest.mark.parametrize("name", KINDS)
def test_every_broken_input_is_understood_or_refused_in_one_line(name, fenced):
    seed = int(os.environ.get("SUREFOOT_TEST_SEED", secrets.randbits(32)))
    print(f"seed {seed} (repeat with SUREFOOT_TEST_SEED={seed})")
    attempt(name, KINDS[name].count, fenced, seed)


@pytest.mark.long
def test_ten_thousand_inputs_were_tried(capsys, record_property):
    """The last of this file."""
    if set(tried) != set(KINDS):
        pytest.skip("not all kinds of input were asked for")
    with capsys.disabled():
        print("\n" + "\n".join(f"{count:>6} {name}" for name, count in tried.items()))
        print(f"{tried.total():>6} inputs, none with a traceback")
    record_property("inputs", tried.total())
    assert tried.total() >= 10_000
