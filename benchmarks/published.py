"""What others published of on-policy methods on the nine MuJoCo tasks at 1M environment steps, and how to set it beside
what is measured here.

Figures are undiscounted returns as their sources give them; where a source has no figure for a task, there is none. The
sources played older versions of the tasks than v5 (each row says which), so they are a bar and no measurement side by
side; `DIFFERENCES` says what changed.
"""

from __future__ import annotations

from dataclasses import dataclass, field

TASKS = (
    "Ant",
    "HalfCheetah",
    "Hopper",
    "Walker2d",
    "Swimmer",
    "Humanoid",
    "Reacher",
    "InvertedPendulum",
    "InvertedDoublePendulum",
)
VERSION = "v5"


@dataclass(frozen=True)
class Published:
    """One published row.

    Attributes:
        name: of the method and its implementation.
        point: "final", at 1M steps, or "best", the best point of the curve of means over seeds.
        source: address of the page that has the figures.
        played: versions of the tasks, seeds, and how the return was measured.
        mean: by task.
        spread: the standard deviation over seeds by task, where the source has it.
    """

    name: str
    point: str
    source: str
    played: str
    mean: dict[str, float]
    spread: dict[str, float] = field(default_factory=dict)


_TIANSHOU = "https://github.com/thu-ml/tianshou/tree/master/examples/mujoco"
_TIANSHOU_PLAYED = "v3 (Reacher and the pendulums v2), 10 seeds, deterministic evaluation, one set of settings"


def _row(*figures: float | tuple[float, float] | None) -> dict[str, dict[str, float]]:
    """Means and spreads by task, from figures in the order of the tasks."""
    known = {task: figure for task, figure in zip(TASKS, figures, strict=True) if figure is not None}
    return {
        "mean": {task: float(figure[0] if isinstance(figure, tuple) else figure) for task, figure in known.items()},
        "spread": {task: float(figure[1]) for task, figure in known.items() if isinstance(figure, tuple)},
    }


ROWS = (
    Published(
        "tianshou TRPO", "best", _TIANSHOU, _TIANSHOU_PLAYED,
        **_row((2867, 708), (4471, 805), (2046, 1038), (3827, 783), (41, 20), (810, 126), (-5.1, 0.8), 1000,
               (8435, 1073)),
    ),
    Published(
        "tianshou TRPO", "final", _TIANSHOU, _TIANSHOU_PLAYED,
        **_row(2731, 4527, 2007, 3507, 36, 799, -5.7, 850, 2314),
    ),
    Published(
        "tianshou NPG", "final", _TIANSHOU, _TIANSHOU_PLAYED,
        **_row(2366, 3493, 1884, 2425, 33, 775, -5.1, 1000, 8332),
    ),
    Published(
        "tianshou PPO", "best", _TIANSHOU, _TIANSHOU_PLAYED,
        **_row((3258, 1079), (5784, 1244), (2609, 701), (3589, 757), (67, 99), (787, 194), (-4.1, 0.3), 1000,
               (9231, 270)),
    ),
    Published(
        "tianshou PPO", "final", _TIANSHOU, _TIANSHOU_PLAYED,
        **_row(3141, 5650, 2483, 3410, 65, 732, -5.0, 792, 7770),
    ),
    Published(
        "sb3-contrib TRPO", "final",
        "https://github.com/Stable-Baselines-Team/stable-baselines3-contrib/blob/master/docs/modules/trpo.rst",
        "v3, 3 seeds, deterministic evaluation, settings tuned for each task (Swimmer with a discount of .9999)",
        **_row((3554, 591), (1803, 46), (3372, 215), (4502, 234), (359, 2), None, None, None, None),
    ),
    Published(
        "OpenAI baselines TRPO", "final", "https://github.com/openai/baselines/blob/master/benchmarks_mujoco1M.htm",
        "versions of 2017 (v1), training return of the sampling policy",
        **_row(None, 1290, 1913, 2343, 95, None, -4.8, 905, 6732),
    ),
    Published(
        "CleanRL PPO", "final", "https://docs.cleanrl.dev/rl-algorithms/ppo/",
        "v4, 3 seeds, training return of the sampling policy",
        **_row(None, 1443, 2383, 2288, None, 716, None, 963, None),
    ),
)  # fmt: skip

DIFFERENCES = (
    "Ant, Hopper, Walker2d, Humanoid and both pendulums: the reward for being healthy is no longer given in the step "
    "in which the robot falls (v4 and before gave it in every step).",
    "Ant: contact forces are observed again and their cost is part of the reward (v4 had neither by default).",
    "Walker2d: both feet have the friction of 1.9 (the right one had 0.9).",
    "Reacher: the distance is rewarded as it is after the step, not before it.",
    "Constant entries of the observations of Ant, Humanoid, Reacher and InvertedDoublePendulum are left out.",
)
"""What changed in v5, as the version histories in https://gymnasium.farama.org/environments/mujoco/ have it."""

BEST = {task: max(row.mean[task] for row in ROWS if task in row.mean) for task in TASKS}
"""The best published figure of each task, whoever's and whichever point it is."""

RANDOM = {
    "Ant": -48.05,
    "HalfCheetah": -282.49,
    "Hopper": 16.67,
    "Walker2d": 1.77,
    "Swimmer": 0.80,
    "Humanoid": 112.60,
    "Reacher": -43.29,
    "InvertedPendulum": 5.23,
    "InvertedDoublePendulum": 49.09,
}
"""Mean return of 100 episodes of uniformly random actions on the v5 tasks, Gymnasium 1.4.0 with MuJoCo 4.0.0
(`python benchmarks/scoreboard.py --random`)."""

TARGETS = {
    "Ant": 3300.0,
    "HalfCheetah": 5800.0,
    "Hopper": 3000.0,
    "Walker2d": 4000.0,
    "Swimmer": 110.0,
    "Humanoid": 1000.0,
    "Reacher": -5.0,
    "InvertedPendulum": 1000.0,
    "InvertedDoublePendulum": 9200.0,
}
"""What the mean over seeds at 1M steps is to reach."""

WORST_OVER_MEAN = 0.6
"""What the worst seed is to reach of the mean."""

TENTH_OF_THE_TIME = 0.1
"""What 1M steps of HalfCheetah may take of sb3-contrib's TRPO's time."""


def normalised(task: str, value: float) -> float:
    """A return on the scale on which random actions are 0 and the best published figure is 1."""
    return (value - RANDOM[task]) / (BEST[task] - RANDOM[task])
