"""Statistics over runs and tasks: known answers, and scipy's own where it has them."""

import numpy as np
import pytest
from scipy.stats import mannwhitneyu, trim_mean

from surefoot.scores import (
    Improvement,
    bootstrap_interval,
    improvement,
    interquartile_mean,
    normalised,
    probability_of_improvement,
)


def column(*values):
    return np.array(values, float)[:, None]


@pytest.mark.parametrize(
    ("scores", "value"),
    [
        (column(5.0), 5.0),
        (column(0, 3, 9), 4.0),
        (column(100, 2, 4, -100), 3.0),
        # Quarters are of all runs on all tasks: a task that is hard for everyone counts as the lowest quarter.
        (np.array([[1, 2, 3, 100], [1, 2, 3, 100]]), 2.5),
        (np.array([[0, 10, 20], [30, 40, 1000], [50, 60, -1000]]), 30.0),
    ],
)
def test_an_interquartile_mean_is_that_of_all_runs_on_all_tasks(scores, value):
    assert interquartile_mean(scores) == value


@pytest.mark.parametrize(
    ("scores", "others", "value"),
    [
        (column(1, 2), column(3, 4), 0.0),
        (column(3, 4), column(1, 2), 1.0),
        (column(1, 1), column(1, 1, 1), 0.5),
        (column(1, 3), column(2), 0.5),
        (column(2, 2, 5), column(2, 4), 0.5),
        (np.array([[1, 9]]), np.array([[2, 3]]), 0.5),  # below on one task, above on the other
    ],
)
def test_a_probability_of_improvement_counts_ties_as_half(scores, others, value):
    assert probability_of_improvement(scores, others) == pytest.approx(value, abs=1e-15)


def test_statistics_are_those_of_scipy_on_every_leading_axis(rng):
    scores, others = rng.integers(0, 9, (4, 7, 3)).astype(float), rng.integers(0, 9, (4, 5, 3)).astype(float)
    found = probability_of_improvement(scores, others)
    told = [
        [mannwhitneyu(x[:, task], y[:, task]).statistic / (7 * 5) for task in range(3)]
        for x, y in zip(scores, others, strict=True)
    ]
    np.testing.assert_allclose(found, np.mean(told, axis=-1), atol=1e-12)
    np.testing.assert_allclose(interquartile_mean(scores), [trim_mean(part, 0.25, axis=None) for part in scores])


def test_a_bootstrap_resamples_every_task_of_every_array_by_itself(rng):
    x, y = rng.normal(size=(6, 4)), rng.normal(0.5, 1, size=(5, 4))
    found = bootstrap_interval(probability_of_improvement, x, y, resamples=4000, seed=1)
    made = np.random.default_rng(2)
    resampled = [
        probability_of_improvement(*(np.take_along_axis(z, made.integers(0, len(z), z.shape), 0) for z in (x, y)))
        for _ in range(4000)
    ]
    # Of quantiles of 4,000 resamples of a statistic whose standard deviation is about 0.07.
    np.testing.assert_allclose(found, np.quantile(resampled, [0.025, 0.975]), atol=0.02)


def test_tasks_that_are_always_the_same_leave_no_doubt():
    # Resampled across tasks, the mean would vary; within each task, nothing can.
    scores = np.tile([0.0, 50.0, 100.0], (4, 1))
    assert bootstrap_interval(interquartile_mean, scores) == (50.0, 50.0)


def test_an_interval_narrows_with_less_confidence_and_repeats_with_its_seed(rng):
    scores = rng.normal(size=(8, 2))
    wide, again = (bootstrap_interval(interquartile_mean, scores, resamples=999) for _ in range(2))
    narrow = bootstrap_interval(interquartile_mean, scores, resamples=999, confidence=0.5)
    assert wide == again
    assert wide.lower < narrow.lower < interquartile_mean(scores) < narrow.upper < wide.upper
    assert bootstrap_interval(interquartile_mean, scores, resamples=999, seed=1) != wide


@pytest.mark.parametrize(
    "scores", [np.zeros(3), np.zeros((1, 2)), np.zeros((3, 0)), np.array([[0.0], [np.nan]])], ids=str
)
def test_scores_that_no_interval_can_be_of_are_refused(scores):
    with pytest.raises(ValueError, match=r"scores must be finite numbers \[runs, tasks\]"):
        bootstrap_interval(interquartile_mean, scores)


def test_improvement_has_an_interval_from_three_seeds_on():
    assert improvement((1.0, 2.0), (0.0, 1.0, 5.0)) == Improvement((1.5 + 2) / 6)
    found = improvement((1.0, 2.0, 3.0), (2.5, 0.0, 1.0))
    assert 0 <= found.lower < found.value < found.upper <= 1


def test_normalised_scores_are_0_and_1_at_their_references():
    scores = np.array([[10.0, -5.0], [20.0, -45.0]])
    np.testing.assert_array_equal(normalised(scores, [10, -45], [20, -5]), [[0, 1], [1, 0]])
    with pytest.raises(ValueError, match="high must be above low"):
        normalised(scores, [10, -5], [20, -5])
