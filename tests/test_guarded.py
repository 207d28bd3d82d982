"""What an environment may return, and how what it may not is told; and what becomes of one that never returns."""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from decimal import Decimal
from fractions import Fraction
from functools import partial

import numpy as np
import pytest
from gymnasium import spaces

import rogues
import surefoot as sf
from surefoot import config
from surefoot.sources import make_source
from surefoot.sources.guard import Guarded, of_the_environment
from surefoot.sources.gymnasium import GymnasiumSimulator
from surefoot.sources.watch import Overdue, Watch

BOX = spaces.Box(-9, 9, (2,), np.float32)
BYTES = spaces.Box(0, 255, (2,), np.uint8)
CHOICE = spaces.Discrete(3)
BITS = spaces.MultiBinary(2)


def answered(space, returned):
    return Guarded(rogues.Answering(space, returned), 7, Watch(None))


def step_with(observation=(0.0, 1.0), reward=1.0, terminated=False, truncated=False, info=None):
    return observation, reward, terminated, truncated, {} if info is None else info


@pytest.mark.parametrize(
    ("space", "given", "taken"),
    [
        (BOX, np.array([0.5, 1.5]), [0.5, 1.5]),
        (BOX, [1, 2], [1, 2]),
        (BOX, (True, False), [1, 0]),
        (BOX, np.array([1, 2], np.float16), [1, 2]),
        (BYTES, [0, 255], [0, 255]),
        (BYTES, np.array([1.0, 2.0]), [1, 2]),
        (CHOICE, 1, 1),
        (CHOICE, np.int8(2), 2),
        (CHOICE, 1.0, 1),
        (CHOICE, True, 1),
        (CHOICE, np.array(1), 1),
        (BITS, [1, 0], [1, 0]),
        (BITS, np.array([True, False]), [1, 0]),
    ],
)
def test_observations_of_another_number_type_that_lose_nothing_are_taken(space, given, taken):
    observation, _ = answered(space, (given, {})).reset()
    np.testing.assert_array_equal(observation, taken)
    assert not np.shares_memory(observation, np.asarray(given))


REFUSED_OBSERVATIONS = [
    (BOX, np.array([1.0, None], object), "is not a number"),
    (BOX, ["a", "b"], "is not a number"),
    (BOX, [1j, 0], "is not a number"),
    (BOX, np.array(["2020-01-01"] * 2, "datetime64[D]"), "is not a number"),
    (BOX, None, "shape"),
    (BOX, [[1, 2], [3]], "is no array"),
    (BOX, {"a": 1}, "shape"),
    (BOX, [1.0, 2.0, 3.0], r"of shape \(3,\), but its space says \(2,\)"),
    (BOX, [[1.0, 2.0]], r"of shape \(1, 2\)"),
    (BYTES, [0, 256], "is no uint8"),
    (BYTES, [-1, 0], "is no uint8"),
    (BYTES, [0.5, 1.0], "is no uint8"),
    (CHOICE, 1.5, "is no int64"),
    (CHOICE, np.nan, "is no int64"),
    (CHOICE, 1e30, "is no int64"),
    (CHOICE, "one", "is not a number"),
    (CHOICE, None, "is not a number"),
    (CHOICE, [1], r"of shape \(1,\)"),
]


@pytest.mark.parametrize(("space", "given", "said"), REFUSED_OBSERVATIONS)
def test_an_observation_that_its_space_does_not_describe_is_refused(space, given, said):
    for call in (lambda: answered(space, (given, {})).reset(), lambda: answered(space, step_with(given)).step(0)):
        assert re.search(f"^environment 7 returned observation .*{said}", fault_of(call))


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        (3, 3.0),
        (True, 1.0),
        (np.float32(1.5), 1.5),
        (np.array([2.0]), 2.0),
        (np.array([[2]]), 2.0),
        (Fraction(1, 2), 0.5),
        (Decimal("0.25"), 0.25),
    ],
    ids=repr,
)
def test_rewards_that_are_one_number_are_taken_as_floats(given, taken):
    _, reward, *_ = answered(BOX, step_with(reward=given)).step(0)
    assert type(reward) is float
    assert reward == taken


@pytest.mark.parametrize("given", ["1", b"1", None, 1j, [], [1, 2], np.zeros(2), [[1], [2, 3]], {}], ids=repr)
def test_a_reward_that_is_no_number_is_refused(given):
    said = fault_of(lambda: answered(BOX, step_with(reward=given)).step(0))
    assert re.search(r"^environment 7 returned (a )?reward .*(not a number)", said)


@pytest.mark.parametrize("given", [True, np.True_, 1, 1.0, np.array(True), np.array([1])], ids=repr)
def test_ends_that_are_true_or_one_are_taken(given):
    assert answered(BOX, step_with(terminated=given)).step(0)[2] is True
    assert answered(BOX, step_with(truncated=given)).step(0)[3] is True


@pytest.mark.parametrize("given", [None, "False", "", 2, np.nan, [], np.zeros(2, bool), [[1], [2, 3]], {}], ids=repr)
@pytest.mark.parametrize("which", ["terminated", "truncated"])
def test_an_end_that_is_neither_true_nor_false_is_refused(which, given):
    said = fault_of(lambda: answered(BOX, step_with(**{which: given})).step(0))
    assert said.startswith(f"environment 7 returned {which} ")
    assert said.endswith("which is neither True nor False")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (step_with()[:4], "returned 4 values from step, where observation, reward, terminated, truncated and info are"),
        ((*step_with(), 0), "returned 6 values from step"),
        (None, "returned None from step"),
        ({"observation": 0}, "returned a dict from step"),
        ((*step_with()[:4], None), "returned info None, which is not a dictionary"),
        ((*step_with()[:4], []), "returned info [], which is not a dictionary"),
    ],
)
def test_a_step_of_another_form_is_refused_with_what_is_wanted(given, said):
    assert said in fault_of(lambda: answered(BOX, given).step(0))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (np.zeros(2), "returned a ndarray from reset, where observation and info (a dictionary) are wanted"),
        ([0.0, 1.0], "returned 2 values from reset, where observation and info"),
        ((np.zeros(2), None), "returned 2 values from reset, where observation and info"),
        ((np.zeros(2), {}, 0), "returned 3 values from reset"),
        (None, "returned None from reset"),
    ],
)
def test_a_reset_of_another_form_is_refused_with_what_is_wanted(given, said):
    assert said in fault_of(lambda: answered(BOX, given).reset())


def test_a_fault_stays_one_line_of_bearable_length():
    said = fault_of(lambda: answered(BOX, step_with(reward="long\n" * 10_000)).step(0))
    assert "\n" not in said
    assert len(said) < 600


def fault_of(call):
    with pytest.raises(sf.EnvironmentFault) as raised:
        call()
    assert "\n" not in str(raised.value)
    return str(raised.value)


# Environments that never come back.

SYNC = config.Collection(envs=2, horizon=4, vectorisation="sync", step_seconds=0.2)


@pytest.fixture
def handler():
    """A handler of SIGALRM, as a user may have set one."""

    def mine(number, frame):
        raise AssertionError("it was not for me")

    before = signal.signal(signal.SIGALRM, mine)
    yield mine
    signal.signal(signal.SIGALRM, before)


def simulator_of(deed, at, chosen, asynchronous, seconds=0.5, count=3):
    return GymnasiumSimulator(
        partial(rogues.Doing, deed, at, chosen), count, step_seconds=seconds, asynchronous=asynchronous
    )


HANGS = [rogues.sleep_for_ever, rogues.swallow_for_ever, rogues.wait_for_ever]


@pytest.mark.parametrize("deed", HANGS)
def test_a_hang_is_ended_and_the_users_handler_is_kept(deed, handler):
    simulator = simulator_of(deed, 0, 11, asynchronous=False, seconds=0.1)
    with simulator.watched():
        simulator.reset([10, 11, 12])
        simulator.send(np.zeros((3, 2), np.float32))
        said = fault_of(simulator.receive)
    assert said == "environment 1 has not come back from step after 0.1 s; raise step_seconds if it may take longer"
    assert signal.getsignal(signal.SIGALRM) is handler
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    simulator.close()


def test_a_hang_in_reset_or_while_being_made_is_told_as_that(handler):
    source = make_source(partial(rogues.Doing, rogues.sleep_for_ever, -1), SYNC)
    import jax

    said = fault_of(lambda: source.reset(jax.random.key(0)))
    assert said.startswith("rogues:Doing: reset: environment 0 has not come back from reset after 0.2 s")
    said = fault_of(lambda: make_source(rogues.sleep_for_ever, SYNC))
    assert said.startswith("environment 0 has not come back from being made after 0.2 s")
    third = rogues.Third(rogues.sleep_for_ever)
    said = fault_of(lambda: make_source(third, SYNC))
    assert said.startswith("environment 1 has not come back from being made")
    assert third.closed == 2
    assert signal.getsignal(signal.SIGALRM) is handler


def test_a_slow_environment_within_its_time_is_left_alone():
    simulator = simulator_of(partial(time.sleep, 0.3), 0, None, asynchronous=False, seconds=0.5)
    with simulator.watched():
        simulator.reset([1, 2, 3])
        simulator.send(np.zeros((3, 2), np.float32))
        simulator.receive()  # 0.9 s for the three together
    simulator.close()


def test_where_a_timer_cannot_be_had_nothing_is_watched_and_nothing_breaks(handler):
    found = []

    def elsewhere():
        with Watch(0.1):
            found.append(signal.getsignal(signal.SIGALRM))

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    signal.setitimer(signal.ITIMER_REAL, 60)  # the user's own
    try:
        elsewhere()
        assert signal.getitimer(signal.ITIMER_REAL)[0] > 50
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    with Watch(None):
        found.append(signal.getsignal(signal.SIGALRM))
    assert found == [handler] * 3


@pytest.mark.parametrize("deed", [rogues.sleep_for_ever, rogues.deaf_for_ever])
def test_a_worker_that_hangs_is_named_and_really_gone(deed):
    simulator = simulator_of(deed, 1, 11, asynchronous=True)
    processes = list(simulator._vector.processes)
    simulator.reset([10, 11, 12])
    simulator.send(np.zeros((3, 2), np.float32))
    simulator.receive()
    simulator.send(np.zeros((3, 2), np.float32))
    assert fault_of(simulator.receive).startswith("environment 1 has not come back from step after 0.5 s")
    simulator.close()
    assert not any(process.is_alive() for process in processes)
    for process in processes:
        with pytest.raises(ProcessLookupError):
            os.kill(process.pid, 0)


def test_a_worker_that_hangs_in_reset_is_named():
    simulator = simulator_of(rogues.sleep_for_ever, -1, 12, asynchronous=True)
    assert fault_of(lambda: simulator.reset([10, 11, 12])).startswith("environment 2 has not come back from reset")
    simulator.close()


def test_a_worker_that_is_killed_is_named_and_ctrl_c_is_not_its_business():
    simulator = simulator_of(rogues.kill, 1, 11, asynchronous=True)
    simulator.reset([10, 11, 12])
    for process in simulator._vector.processes:
        os.kill(process.pid, signal.SIGINT)
    simulator.send(np.zeros((3, 2), np.float32))
    simulator.receive()
    simulator.send(np.zeros((3, 2), np.float32))
    assert fault_of(simulator.receive) == "environment 1 lost its worker process, which was ended by SIGKILL"
    simulator.close()


# Environments that cannot be made.


@pytest.mark.parametrize(
    ("deed", "said"),
    [
        (
            rogues.fail,
            "environment 'rogues:{}' cannot be made: ZeroDivisionError: the rogue failed on purpose (environment",
        ),
        (rogues.leave, "environment 'rogues:{}' cannot be made: SystemExit: 3 (environment"),
        (rogues.of_other_actions, "has the action space Discrete(2), but that of the first is Box(-1.0, 1.0, (2,)"),
        (rogues.kill, "lost its worker process, which was ended by SIGKILL"),
        (rogues.sleep_for_ever, "has not come back from being made after 0.2 s"),
    ],
)
@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_copy_that_cannot_be_made_is_told_with_its_index(asynchronous, deed, said):
    if asynchronous:
        settings = config.Collection(envs=2, vectorisation="async", step_seconds=0.2)
        line = fault_of(lambda: make_source(partial(rogues.other_in_a_worker, deed), settings))
        assert said.format("other_in_a_worker") in line
        assert re.search("environment [01]", line)
    elif deed is not rogues.kill:
        third = rogues.Third(deed)
        line = fault_of(lambda: make_source(third, SYNC))
        assert said.format("Third") in line
        assert "environment 1" in line
        assert third.closed == 2  # the first was made to look at its spaces


# What is not the environment's fault.


def raised_by(function):
    try:
        function()
    except BaseException as error:
        return error
    raise AssertionError


def test_what_a_signal_raises_in_an_environments_code_is_not_the_environments():
    def stop(number, frame):
        raise SystemExit(143)

    before = signal.signal(signal.SIGUSR1, stop)
    try:
        by_signal = raised_by(lambda: os.kill(os.getpid(), signal.SIGUSR1))
        assert isinstance(by_signal, SystemExit)
        assert not of_the_environment(by_signal)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert of_the_environment(raised_by(rogues.leave))
    assert of_the_environment(raised_by(rogues.fail))
    assert of_the_environment(Overdue())
    assert not of_the_environment(KeyboardInterrupt())
