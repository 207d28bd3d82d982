"""Promised against realised over a run, from made-up histories."""

import pytest

from histories import healthy_rows, write_run
from surefoot import history
from surefoot.calibration import calibrate, left_region


def read(folder, rows, **settings):
    return history.read(write_run(folder, rows, config=settings))


def test_what_was_taken_back_is_in_no_sum(tmp_path):
    rows = healthy_rows()
    every = calibrate(read(tmp_path / "all", rows))
    rows[4] |= {"undone": True, "realised_gain": -100.0, "realised_gain_upper": -90.0}
    told = calibrate(read(tmp_path / "undone", rows))
    assert told.judged == every.judged - 1
    assert told.realised == pytest.approx(every.realised - 3.5)
    # That it lowered the return beyond noise is counted all the same.
    assert told.lowered == pytest.approx(1 / every.judged)
    assert every.lowered == 0


@pytest.mark.parametrize(
    ("settings", "column"),
    [({}, "kl"), ({"divergence": "reverse-kl"}, "reverse_kl"), ({"constraint": "max"}, "max_kl")],
)
def test_the_region_is_left_in_the_divergence_that_the_rule_constrains(tmp_path, settings, column):
    rows = [row | {"kl": 0.009, "reverse_kl": 0.009, "max_kl": 0.009} for row in healthy_rows()]
    rows[7] |= {column: 0.0102}
    told = left_region(read(tmp_path, rows, rule_settings={"radius": 0.01} | settings))
    assert told.nonzero()[0].tolist() == [7]


def test_without_a_radius_in_force_no_region_is_left(tmp_path):
    assert left_region(read(tmp_path / "eta", healthy_rows(), rule_settings={"eta": 1.0})) is None
    assert left_region(read(tmp_path / "ppo", healthy_rows(), trust_region="none")) is None


def test_an_old_history_without_gains_is_calibrated_as_far_as_it_goes(tmp_path):
    old = [{"update": 1, "accepted": True, "kl": 0.02, "radius": 0.01}]
    told = calibrate(read(tmp_path, old))
    assert (told.updates, told.judged, told.ratio, told.lowered, told.vacuous) == (1, 0, None, None, None)
    assert told.left == 1
