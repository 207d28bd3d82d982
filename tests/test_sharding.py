"""An update over several devices: the sums are one device's, and no batch crosses between them."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import surefoot as sf
from runs import TINY, after, policy, rows
from spreading import DEVICES, ROWS, SAMPLED, collectives
from surefoot import cli, sharding
from surefoot.errors import SettingError, Stopped
from surefoot.kept import kept_updates
from surefoot.replaying import replay
from surefoot.sharding import spread_over
from surefoot.training import resume, train

PROBE = Path(__file__).parent / "spreading.py"
CHEAP = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"


def started(*arguments, devices):
    flags = f"{CHEAP} --xla_force_host_platform_device_count={devices}"
    return subprocess.Popen(
        [sys.executable, str(PROBE), *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"XLA_FLAGS": flags, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )


def ended(probe):
    told, wrong = probe.communicate(timeout=600)
    assert probe.returncode == 0, wrong[-3000:]
    return told


@pytest.fixture(scope="module")
def single():
    """Differences between one device and several in float32, and what the programs send."""
    return json.loads(ended(started("compare", "float32", devices=DEVICES)))


@pytest.fixture(scope="module")
def double():
    """The same in float64, without what is sent."""
    return json.loads(ended(started("compare", "float64", devices=DEVICES)))


def test_the_gradient_and_the_fisher_product_are_one_devices(single, double):
    for name in ("gradient", "Fisher product"):
        assert single["differences"][name] < 1e-5
        assert double["differences"][name] < 1e-12


def test_the_first_update_is_one_devices(single, double):
    exact = [name for name in single["differences"] if name.partition(":")[0] not in SAMPLED]
    assert {"trpo", "trpo: step", "trpo in chunks: step", "ppo: step", "trpo: held out", "critic"} < set(exact)
    # Of the step itself too, which is a small part of the parameters.
    assert {name: single["differences"][name] for name in exact if not single["differences"][name] < 1e-2} == {}
    found = {name: double["differences"][name] for name in exact if name in double["differences"]}
    assert {"trpo", "trpo: step", "trpo: held out", "critic", "movement"} < set(found)
    assert {name: difference for name, difference in found.items() if not difference < 1e-6} == {}


def test_a_step_on_a_part_of_the_rows_differs_as_another_part_would(single):
    differences = single["differences"]
    for name in ("trpo of a subsample: step", "ppo in minibatches: step", "critic in minibatches"):
        assert 0 < differences[name] < 1
    # It is the rows that differ: of the same ones the step is the same.
    assert differences["subsample in blocks"] < 1e-2


def test_what_crosses_between_devices_are_sums_no_larger_than_the_parameters(single):
    gathered = {name: single["sent"].pop(name) for name in ("flattened in time's order", "rows of everywhere")}
    for name, sent in single["sent"].items():
        assert bool(sent) == (name != "frozen"), name  # its sums are over each environment's own rows
        assert {kind for kind, _ in sent} <= {"all-reduce"}, name
        assert max((size for _, size in sent), default=0) <= single["parameters"] < ROWS, name
    # A program that does send the batch is seen to.
    for sent in gathered.values():
        assert max(size for _, size in sent) >= ROWS


def test_collectives_are_read_off_a_program():
    text = """
      %all-reduce.1 = (f32[], f32[16,3]{1,0}) all-reduce(%a, %b), channel_id=1
      %g = (f32[4,8]{1,0}, f32[16,8]{1,0}) all-gather-start(%p), dimensions={0}
      ROOT %p = f32[7]{0} collective-permute(%q)
      %h = f32[99]{0} add(%all-reduce.1, %g)
    """
    assert collectives(text) == [("all-reduce", 48), ("all-gather", 128), ("collective-permute", 7)]


@pytest.mark.skipif(jax.device_count() < 2, reason="needs two devices")
class TestRows:
    """With two devices: where the rows are."""

    def test_merging_is_undone_and_agrees_with_picking_and_cutting(self):
        numbers = jnp.arange(12.0).reshape(3, 4)  # [T, N]
        with spread_over(2):
            flat = jax.jit(sharding.merged)(sharding.placed(numbers))
            assert flat.tolist() == [0, 1, 4, 5, 8, 9, 2, 3, 6, 7, 10, 11]
            assert jax.jit(lambda x: sharding.unmerged(x, (3, 4)))(flat).tolist() == numbers.tolist()
            assert sharding.taken(flat, np.asarray([0, 5])).tolist() == [0, 9, 2, 11]
            assert sharding.taken(flat, jnp.asarray([[0, 5], [1, 1]])).tolist() == [0, 9, 3, 3]
            part = sharding.cut(flat, 4, 2)
            assert part.tolist() == [8, 9, 10, 11]
            assert sharding.put(jnp.zeros(12), part, 4).tolist() == [0, 0, 0, 0, 8, 9, 0, 0, 0, 0, 10, 11]
            assert sharding.in_every_block(jnp.asarray([1, 0])).tolist() == [1, 0, 1, 0]

    def test_a_pass_sees_every_row_once_and_each_device_gives_each_minibatch_as_many(self):
        with spread_over(2):
            order = jnp.asarray([[2, 0, 1], [1, 2, 0]])
            size = sharding.minibatch_size(3, 6)
            assert size == 2
            assert sharding.minibatch_size(1, 6) == 2
            numbers = sharding.placed(jnp.arange(6), axis=0)
            at_once = sharding.in_minibatches(sharding.taken(numbers, order), 3)
            assert at_once.tolist() == [[2, 4], [0, 5], [1, 3]]
            index = sharding.split(order, 3, size)
            assert [sharding.taken(numbers, each).tolist() for each in index] == at_once.tolist()

    def test_one_device_is_as_if_there_were_no_others(self):
        for devices in (None, 1):
            with spread_over(devices):
                assert sharding.blocks() == 1
                tree = object()
                assert sharding.replicated(tree) is tree


SETTINGS = TINY | {"devices": 2, "steps": 700, "progress": False, "holdout": 0.25, "keep_batches": 1}


@pytest.mark.skipif(jax.device_count() < 2, reason="needs two devices")
@pytest.mark.parametrize(
    "rule", [sf.TRPO(), pytest.param(sf.PPO(epochs=2), marks=pytest.mark.long)], ids=["trpo", "ppo"]
)
def test_a_run_over_devices_that_was_stopped_goes_on_as_if_it_had_not(rule, tmp_path):
    train("CartPole-v1", rule, out=tmp_path / "whole", **SETTINGS)
    with pytest.raises(Stopped):
        train("CartPole-v1", rule, out=tmp_path / "parts", stop=after(3), **SETTINGS)
    resume(tmp_path / "parts", progress=False)
    assert rows(tmp_path / "parts") == rows(tmp_path / "whole")
    assert policy(tmp_path / "parts") == policy(tmp_path / "whole")
    (kept,) = kept_updates(tmp_path / "whole")
    assert replay(tmp_path / "whole", update=kept, rules=[]).repetition.same


SMALL = {"envs": 8, "horizon": 8, "steps": 200, "evaluation_episodes": 1}


def test_the_command_makes_the_devices_that_it_is_asked_for(tmp_path):
    out = tmp_path / "run"
    command = [sys.executable, "-m", "surefoot.cli"]
    tiny = [f"--{name.replace('_', '-')}={value}" for name, value in SMALL.items()]
    environment = os.environ | {"XLA_FLAGS": CHEAP}
    for arguments in (
        ["train", "CartPole-v1", "--devices", "4", "--out", str(out), *tiny],
        ["resume", str(out), "--steps", "300"],
    ):
        done = subprocess.run([*command, *arguments], capture_output=True, text=True, env=environment, timeout=600)
        assert done.returncode == 0, done.stderr
    assert json.loads((out / "config.json").read_text())["devices"] == 4


def test_what_cannot_be_spread_is_refused_before_anything_is_made(tmp_path, capsys):
    out = tmp_path / "run"
    with pytest.raises(SettingError, match=r"devices must divide envs, 8, .* but 3 came"):
        train("CartPole-v1", out=out, envs=8, devices=3)
    there = jax.device_count()
    with pytest.raises(SettingError, match=rf"devices must be at most {there}, as JAX sees {there} cpu dev.* 64 came"):
        train("CartPole-v1", out=out, envs=64, devices=64)
    with pytest.raises(SettingError, match=r"devices must be 1 for functional_probes:walk, which is written in JAX"):
        train("functional_probes:walk", out=out, envs=8, devices=2)
    assert cli.main(["train", "CartPole-v1", "--envs", "64", "--devices", "64", "--out", str(out)]) == 2
    assert capsys.readouterr().err.startswith("surefoot: devices must be at most")
    assert cli.main(["train", "CartPole-v1", "--devices", "0", "--out", str(out)]) == 2
    assert not out.exists()


@pytest.mark.long
@pytest.mark.parametrize("devices", [1, 2], ids=["one device each", "two devices each"])
def test_two_processes_make_the_update_of_one(devices, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    files = [tmp_path / f"{name}.npz" for name in ("alone", "first", "second")]
    ended(started("process", 0, 1, port, files[0], devices=1))
    both = [started("process", number, 2, port, files[number + 1], devices=devices) for number in (0, 1)]
    for probe in both:
        ended(probe)
    alone, first, second = (np.load(file) for file in files)
    for name in alone.files:
        assert (first[name] == second[name]).all(), name
    assert alone["accepted"]
    assert first["accepted"]
    assert first["rows"] == ROWS
    for name, most in (("theta", 1e-4), ("step", 1e-2), ("critic", 1e-2), ("kl", 1e-2)):
        one, other = alone[name], first[name]
        assert np.linalg.norm(one - other) < most * np.linalg.norm(one), name
