"""Ray workers: what they bring back, what becomes of a run when some are lost, and what they cannot be asked for."""

import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from types import SimpleNamespace

import jax
import numpy as np
import pytest

import probes
import ray_nodes
import surefoot as sf
from runs import TIMES, TINY, after, policy
from surefoot import cli, config, history
from surefoot.advantage import estimate
from surefoot.batch import Trajectory
from surefoot.distributions import DiagGaussian
from surefoot.errors import Stopped
from surefoot.policy import make_policy
from surefoot.sources import make_source
from surefoot.sources.ray import RayState
from surefoot.sources.ray_collection import Asked, Collection, fits
from surefoot.sources.ray_worker import Share
from surefoot.training import resume, train

pytest.importorskip("ray")

COUNTED = {"workers_replaced", "workers_restarted", "collected_share"}
LOCAL = {"source": "gymnasium", "vectorisation": "sync"}


@pytest.fixture
def cluster():
    return ray_nodes.two_nodes()


@pytest.fixture
def opened(cluster):
    """Make a source that is closed after the test."""
    sources = []

    def make(environment, envs=4, horizon=8, **settings):
        sources.append(make_source(environment, config.Collection(envs=envs, horizon=horizon, **LOCAL, **settings)))
        return sources[-1]

    yield make
    for source in sources:
        source.close()


def acting(source):
    return make_policy(source.observation_space, source.action_space, config.Network(hidden=(8,)), jax.random.key(0))


def lived(source, collections, state=None, since=0):
    """Trajectories of so many collections and the state after each."""
    policy, state = acting(source), state or source.reset(jax.random.key(5))
    parts, states = [], [state]
    for number in range(since, since + collections):
        trajectory, state = source.collect(policy, state, jax.random.key(100 + number))
        parts.append(trajectory)
        states.append(state)
    return parts, states


def same_bits(one, other):
    ones, others = jax.tree.leaves(one), jax.tree.leaves(other)
    return len(ones) == len(others) and all(
        a.dtype == b.dtype and np.array_equal(a, b, equal_nan=True) for a, b in zip(ones, others, strict=True)
    )


def test_workers_bring_back_what_as_many_sources_would_side_by_side(opened):
    whole = opened(probes.Noise, envs=5, workers=2)
    parts, _ = lived(whole, 2)
    alone = []
    for place, envs in enumerate((2, 3)):
        source = make_source(probes.Noise, config.Collection(envs=envs, horizon=8, **LOCAL))
        split = partial(lambda place, key: jax.random.split(key, 2)[place], place)
        state, own = source.reset(split(jax.random.key(5))), []
        for number in range(2):
            trajectory, state = source.collect(acting(source), state, split(jax.random.key(100 + number)))
            own.append(trajectory)
        alone.append(own)
    for part, *sides in zip(parts, *alone, strict=True):
        assert same_bits(part, jax.tree.map(lambda *leaves: np.concatenate(leaves, axis=1), *sides))


def test_workers_are_on_both_nodes(opened, cluster):
    import ray

    source = opened(probes.Noise, workers=4)
    arguments = probes.Noise, config.Collection(envs=1, **LOCAL), 1
    nodes = [described.node for described in ray.get([actor.begin.remote(*arguments) for actor in source._actors])]
    assert len(set(nodes)) == 2


@pytest.mark.parametrize("way", ["dies", "hangs", "raises", "returns nan"])
def test_a_worker_that_goes_wrong_is_replaced_and_changes_no_bit(way, opened, tmp_path):
    undisturbed, _ = lived(opened(partial(probes.Once, "never", 0, ""), workers=2), 4)
    limit = {"worker_seconds": 5.0} if way == "hangs" else {}
    # In the third collection, so that something is replayed.
    source = opened(partial(probes.Once, way, 19, str(tmp_path / "flag")), workers=2, **limit)
    parts, states = lived(source, 4)
    assert (tmp_path / "flag").exists()
    assert same_bits(parts, undisturbed)
    assert [source.told(state)["workers_replaced"] for state in states] == [0, 0, 0, 1, 1]
    assert source.told(states[-1]) == {"workers_replaced": 1, "workers_restarted": 0, "collected_share": 1.0}


def test_where_nothing_can_be_replayed_a_replaced_worker_begins_anew(opened, tmp_path):
    source = opened(partial(probes.OnceIrreproducible, "dies", 19, str(tmp_path / "flag")), workers=2)
    parts, states = lived(source, 4)
    assert source.told(states[-1])["workers_restarted"] == 1
    assert sorted(part.restarts for part in states[-1].parts) == [0, 1]
    assert all(np.isfinite(part.reward).all() for part in parts)
    # What it did before it was lost is not replayed any more.
    lengths = [sum(len(block) for block in part.actions) for part in states[-1].parts]
    assert sorted(lengths) == [16, 32]


def test_an_environment_that_always_fails_is_told_of_with_its_worker(opened):
    source = opened(partial(probes.Faulty, "raises", 5), envs=2, workers=2)
    state = source.reset(jax.random.key(5))
    with pytest.raises(sf.EnvironmentFault, match=r"step 5: environment 0 raised in step: .* \(worker [01]\)$"):
        source.collect(acting(source), state, jax.random.key(0))


def test_workers_that_are_lost_again_and_again_end_the_run_in_one_line(opened):
    source = opened(probes.Dying, envs=2, workers=2)
    state = source.reset(jax.random.key(5))
    with pytest.raises(sf.EnvironmentFault, match=r"^worker [01] is lost: \w+: ") as fault:
        source.collect(acting(source), state, jax.random.key(0))
    assert "\n" not in str(fault.value)


def run_rows(run):
    """Its metrics but for times, and for what counts the workers."""
    return [{k: v for k, v in row.items() if k not in TIMES | COUNTED} for row in history.read(run).rows]


SETTINGS = TINY | LOCAL | {"workers": 2, "steps": 800, "progress": False}


def test_a_run_goes_on_when_a_node_is_removed_and_another_added(cluster, tmp_path):
    train(probes.Noise, "pg", out=tmp_path / "whole", **SETTINGS)
    extra = cluster.add_node(num_cpus=4, object_store_memory=2**27)
    asked = iter(range(100))

    def at_times():
        nonlocal extra
        update = next(asked)
        if update == 1:
            cluster.remove_node(extra)
        if update == 3:
            extra = cluster.add_node(num_cpus=4, object_store_memory=2**27)
        return False

    # More workers than the two other nodes have processors for: some are on the node that goes.
    settings = SETTINGS | {"workers": 8, "envs": 8}
    train(probes.Noise, "pg", out=tmp_path / "eight", **settings)
    train(probes.Noise, "pg", out=tmp_path / "parts", stop=at_times, **settings)
    cluster.remove_node(extra)
    assert run_rows(tmp_path / "parts") == run_rows(tmp_path / "eight")
    assert policy(tmp_path / "parts") == policy(tmp_path / "eight")
    assert history.read(tmp_path / "parts").rows[-1]["workers_replaced"] >= 1


def killed(processes, times, seed):
    """Kill workers at random until `times` are dead."""
    chance = random.Random(seed)
    for _ in range(times):
        time.sleep(chance.uniform(0.2, 1.5))
        if found := processes():
            os.kill(chance.choice(found), signal.SIGKILL)


def workers_of():
    """Processes of Ray's workers that collect, of whichever driver: for tests that run alone."""
    told = subprocess.run(["ps", "-eo", "pid,args"], capture_output=True, text=True, check=True).stdout
    return [int(line.split()[0]) for line in told.splitlines() if "ray::Collector" in line]


@pytest.mark.parametrize("times", [2, pytest.param(20, marks=pytest.mark.long)])
def test_workers_killed_at_random_lose_no_update_and_no_record(times, cluster, tmp_path, seed):
    environment = partial(probes.Slow, 2)
    settings = SETTINGS | {"steps": 128 * 12 * times, "workers": 4}
    train(probes.Noise, "pg", out=tmp_path / "whole", **settings)

    def workers():  # of the cluster that this process has begun, and no other's
        return sorted(set(workers_of()) & below(os.getpid()))

    killer = threading.Thread(target=killed, args=(workers, times, seed), daemon=True)
    done = threading.Event()

    def stop():
        if not killer.is_alive() and not done.is_set():
            done.set()
            killer.start()
        return False

    train(environment, "pg", out=tmp_path / "parts", stop=stop, **settings)
    killer.join(timeout=60)
    assert run_rows(tmp_path / "parts") == run_rows(tmp_path / "whole")
    assert policy(tmp_path / "parts") == policy(tmp_path / "whole")
    assert history.read(tmp_path / "parts").rows[-1]["workers_replaced"] >= 1


def test_a_run_of_workers_that_was_stopped_goes_on_as_if_it_had_not(cluster, tmp_path):
    train("probes:Noise", "pg", out=tmp_path / "whole", **SETTINGS)
    with pytest.raises(Stopped):
        train("probes:Noise", "pg", out=tmp_path / "parts", stop=after(3), **SETTINGS)
    resume(tmp_path / "parts", progress=False, allow_env=True)
    assert run_rows(tmp_path / "parts") == run_rows(tmp_path / "whole")
    assert policy(tmp_path / "parts") == policy(tmp_path / "whole")


RUBBISH = {
    "no share": lambda share: 5,
    "no trajectory": lambda share: share._replace(trajectory=None),
    "too short": lambda share: share._replace(trajectory=jax.tree.map(lambda leaf: leaf[:-1], share.trajectory)),
    "of other environments": lambda share: share._replace(
        trajectory=jax.tree.map(lambda leaf: leaf[:, :1], share.trajectory)
    ),
    "infinite": lambda share: share._replace(
        trajectory=dataclasses.replace(share.trajectory, reward=np.full_like(share.trajectory.reward, np.inf))
    ),
    "numbers for flags": lambda share: share._replace(
        trajectory=dataclasses.replace(share.trajectory, reset=np.full(share.trajectory.reset.shape, 99))
    ),
    "no state": lambda share: share._replace(state=None),
}


@pytest.mark.parametrize("what", RUBBISH)
def test_what_is_no_share_is_not_taken_for_one(what):
    source = make_source(probes.Noise, config.Collection(envs=2, horizon=8, **LOCAL))
    state = source.reset(jax.random.key(5))
    trajectory, after = source.collect(acting(source), state, jax.random.key(0))
    share = Share(trajectory, dataclasses.replace(after, actions=after.actions[-1:]), False, False)
    assert fits(share, state, steps=8)
    assert not fits(RUBBISH[what](share), state, steps=8)


class Promises:
    """Stands for Ray: worker 0 is lost at first, the others answer after .4 seconds."""

    class RayError(Exception):
        pass

    class RayTaskError(RayError):
        pass

    def __init__(self, share):
        self.exceptions = self
        self._share, self._begun = share, time.monotonic()

    def put(self, what):
        return what

    def wait(self, promises, *, num_returns, timeout):
        until = time.monotonic() + (60 if timeout is None else timeout)
        while True:
            ready = [promise for promise in promises if self._ready(*promise)][:num_returns]
            if ready or time.monotonic() >= until:
                return ready, []
            time.sleep(0.005)

    def _ready(self, worker, asked):
        return worker == 0 or time.monotonic() - self._begun > 0.4

    def get(self, promise):
        if promise == (0, 1):
            raise self.RayError
        return self._share


class Replacing:
    """Stands for the source: another worker takes longer to begin than a share may take."""

    envs, horizon = 3, 8

    def __init__(self):
        self.asked, self.replaced = [0, 0, 0], []

    def ask(self, worker, *arguments, anyhow):
        self.asked[worker] += 1
        return (worker, self.asked[worker]), Asked(worker, time.monotonic(), 0.2)

    def replace(self, workers):
        self.replaced.append(workers)
        time.sleep(0.3)


def test_one_worker_that_is_lost_costs_no_other_its_place():
    simulated = make_source(probes.Noise, config.Collection(envs=1, horizon=8, **LOCAL))
    state = simulated.reset(jax.random.key(5))
    trajectory, after = simulated.collect(acting(simulated), state, jax.random.key(0))
    share = Share(trajectory, dataclasses.replace(after, actions=after.actions[-1:]), False, False)
    source, standing = Replacing(), RayState((state,) * 3, 1, 0, 0, 1.0)
    collection = Collection(source, SimpleNamespace(ray=Promises(share)), {}, standing, [None] * 3, 2)
    assert collection.made(1.0) == [share] * 3
    assert source.replaced == [[0]]
    assert source.asked == [2, 1, 1]
    assert collection.replaced == 1


def test_an_environment_that_cannot_be_sent_or_cannot_begin_is_told_in_a_line(cluster):
    with pytest.raises(sf.SettingError, match=r"cannot be sent to workers .*package.module:callable$"):
        make_source(partial(probes.Slow, threading.Lock()), config.Collection(workers=2))


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.long)])
def test_a_signal_ends_a_run_of_workers_after_its_update_with_a_checkpoint(number, tmp_path):
    command = "train CartPole-v1 --workers 1 --envs 4 --horizon 16 --hidden 8 --critic-hidden 8 --steps 1000000 --out"
    process = subprocess.Popen(
        [sys.executable, "-m", "surefoot.cli", *command.split(), str(tmp_path / "run")],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        until = time.monotonic() + 120
        while not (tmp_path / "run" / "metrics.jsonl").exists() and time.monotonic() < until:
            time.sleep(0.1)
        time.sleep(1)
        process.send_signal(number)
        _, error = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 128 + number, error
    assert "go on with: surefoot resume" in error
    assert list((tmp_path / "run").glob("checkpoints/*"))


# Stragglers.


def test_with_enough_of_the_transitions_late_workers_are_stopped_and_weights_make_up_for_it(opened, tmp_path):
    source = opened(partial(probes.Slow, 40, str(tmp_path / "flag")), horizon=25, workers=2, enough=0.5)
    begun = time.monotonic()
    (part, following), states = lived(source, 2)
    assert time.monotonic() - begun < 1.5 * 0.04 * 2 * 25  # two environments a worker, one collection's time
    late = part.reset[-1]
    assert sorted(late.tolist()) == [False, False, True, True]
    counts = [len(each.actions[0]) for each in states[1].parts]
    assert sorted(counts)[1] == 25
    assert 0 < min(counts) < 25
    assert source.told(states[1])["collected_share"] == sum(counts) / 50
    short = min(counts)
    assert (part.weight[:short] == 1).all()
    assert (part.weight[short:, ~late] == 2).all()
    assert (part.weight[short:, late] == 0).all()
    # It goes on where it was stopped.
    assert np.array_equal(following.observation[0], part.observation[-1])


def test_a_step_that_is_missing_neither_ends_an_episode_nor_reaches_an_advantage():
    """Rows of no experience after a row that ended nothing: the same estimates as of the rows before them alone."""
    rng = np.random.default_rng(0)
    steps, short = 6, 4
    observation, reward = rng.normal(size=(steps + 1, 1, 2)), rng.normal(size=(steps, 1)).astype(np.float32)
    no = np.zeros((steps, 1), bool)
    missing = np.arange(steps)[:, None] >= short
    log_prob = np.zeros((steps, 1), np.float32)
    value = rng.normal(size=(steps + 1, 1))

    def trajectory(rows, reset, weight):
        time = np.arange(rows)[:, None]
        return Trajectory(
            observation[: rows + 1],
            None,
            rng.normal(size=(rows, 1, 1)),
            log_prob[:rows],
            reward[:rows],
            no[:rows],
            no[:rows],
            reset,
            time,
            weight,
        )

    def made(rows, whole):
        old = DiagGaussian(np.zeros((rows, 1, 1)), np.zeros((rows, 1, 1)))
        return estimate(whole, jax.numpy.asarray(value[: rows + 1], np.float32), old, discount=0.9, gae_lambda=0.8)

    batch, target = made(steps, trajectory(steps, missing, (~missing).astype(np.float32)))
    alone, expected = made(short, trajectory(short, no[:short], None))
    np.testing.assert_allclose(batch.advantage[:short], alone.advantage, rtol=1e-6)
    np.testing.assert_allclose(target[:short], expected, rtol=1e-6)
    np.testing.assert_allclose(batch.weight, [*alone.weight, 0, 0], rtol=1e-6)


def test_returns_are_those_of_whole_episodes_where_steps_are_missing(cluster, tmp_path):
    environment = partial(probes.SlowLengths, (5,), 10, str(tmp_path / "flag"))
    run = train(environment, "pg", out=tmp_path / "run", **SETTINGS | {"steps": 600, "enough": 0.5})
    told = history.read(run.path).rows
    assert {(row["return_min"], row["return_max"], row["length_mean"]) for row in told if row["episodes"]} == {
        (5, 5, 5)
    }
    assert min(row["collected_share"] for row in told) < 1
    assert [row["steps"] for row in told] == list(np.cumsum([row["experience"] for row in told]))


# What is refused.


def test_without_ray_it_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ray", None)
    assert cli.main(["train", "CartPole-v1", "--workers", "2"]) == 2
    assert "pip install 'surefoot[ray]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"workers": 3, "envs": 2}, "workers must be at most envs, 2"),
        ({"enough": 0.5}, "enough must be 1.0 without workers"),
        ({"ray_address": "auto"}, "ray_address must be None without workers"),
        ({"workers": 0}, "workers must be a whole number, at least 1"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(settings, said):
    with pytest.raises(sf.SettingError, match=said):
        config.make_run(**settings)


def test_no_file_chooses_the_cluster_that_a_run_is_on(cluster, tmp_path):
    import ray

    address = ray.get_runtime_context().gcs_address
    run = tmp_path / "run"
    with pytest.raises(Stopped):
        train("CartPole-v1", "pg", out=run, stop=after(1), ray_address=address, **SETTINGS)
    told = json.loads((run / "config.json").read_text())
    assert (told["workers"], told["ray_address"]) == (2, None)
    (run / "config.json").write_text(json.dumps(told | {"ray_address": address}))
    with pytest.raises(sf.RunError, match="ray_address must be null in a file"):
        resume(run, progress=False)
    (run / "config.json").write_text(json.dumps(told))
    resume(run, ray_address=address, progress=False)


def test_resume_takes_the_word_none_for_no_cluster_as_train_does(tmp_path, capsys):
    run = str(tmp_path / "run")
    train("CartPole-v1", "pg", out=run, **SETTINGS | {"workers": None, "steps": 200})
    assert cli.main(["resume", run, "--ray-address", "none"]) == 0
    assert cli.main(["resume", run, "--ray-address", "auto"]) == 2
    assert "ray_address must be None for a run without workers" in capsys.readouterr().err


def test_there_is_an_environment_for_every_worker_unless_their_number_is_given():
    assert config.make_run(workers=256).collection.envs == 256
    assert config.make_run(workers=2).collection.envs == config.Collection().envs


def test_environments_that_are_compiled_with_the_update_have_no_workers(cluster):
    pytest.importorskip("gymnax")
    with pytest.raises(sf.SettingError, match="workers are for environments that are stepped on the host"):
        make_source("gymnax:CartPole-v1", config.Collection(workers=2))


def test_an_environment_that_is_not_there_is_told_as_without_workers(cluster):
    with pytest.raises(sf.EnvironmentNotFound, match="'NoSuch-v1' is not known to Gymnasium"):
        make_source("NoSuch-v1", config.Collection(workers=2))


# The command, with a cluster of its own.


def test_the_command_trains_with_workers_in_an_environment_of_ones_own(tmp_path):
    (tmp_path / "my_sim.py").write_text(
        "import gymnasium\n\n\ndef make(**options):\n    return gymnasium.make('CartPole-v1', **options)\n"
    )
    command = "train my_sim:make --workers 2 --enough 0.9 --envs 4 --horizon 16 --steps 200 --evaluation-episodes 1"
    command += " --json --out run"
    done = subprocess.run(
        [sys.executable, "-m", "surefoot.cli", *command.split()],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["steps"] >= 200
    assert "ray" not in done.stderr.lower()
    assert history.read(tmp_path / "run").rows[-1]["workers_replaced"] == 0


def below(pid):
    """The processes that descend from this one, it among them."""
    told = subprocess.run(["ps", "-eo", "pid,ppid"], capture_output=True, text=True, check=True).stdout
    pairs = [tuple(map(int, line.split())) for line in told.splitlines()[1:]]
    found = {pid}
    while more := {child for child, parent in pairs if parent in found} - found:
        found |= more
    return found


@pytest.mark.long
def test_a_driver_that_is_killed_takes_its_workers_along_and_its_run_goes_on(tmp_path):
    command = [sys.executable, "-m", "surefoot.cli", "train", "CartPole-v1", "--workers", "2", "--envs", "8"]
    options = "--horizon 16 --hidden 8 --critic-hidden 8 --steps 30000 --checkpoint-seconds 0 --json --out"
    command += options.split()
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    subprocess.run([*command, str(whole)], check=True, capture_output=True, timeout=300)
    process = subprocess.Popen([*command, str(parts)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until = time.monotonic() + 120
        while len(list(parts.glob("checkpoints/*"))) < 2 and time.monotonic() < until:
            time.sleep(0.05)
        family = below(process.pid)
        assert len(family) > 3  # Ray has some
    finally:
        process.kill()
        process.wait()
    until = time.monotonic() + 30
    while (left := family & set(workers_of())) and time.monotonic() < until:
        time.sleep(0.5)
    assert not left  # of Ray's own, two agents take a minute or two longer
    assert not (parts / "evaluation.json").exists()
    subprocess.run(
        [sys.executable, "-m", "surefoot.cli", "resume", str(parts), "--json"],
        check=True,
        capture_output=True,
        timeout=300,
    )
    assert run_rows(parts) == run_rows(whole)
    assert policy(parts) == policy(whole)
