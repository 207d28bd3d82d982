"""Does a solved task stay solved? A cart-pole that is pushed by any force, trained for ten times as long as it takes.

    python benchmarks/settling.py [--seeds 8] [--steps 600000] [--rule NAME] [--set NAME=VALUE …] [--json]

A line a seed: the deterministic return (at most 1,000) at each tenth of the run and after it, and the largest KL by
which the observation normaliser alone moved the policy in an update. The task is none of the scoreboard's: settings
that are chosen on it are not tuned on those.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from scoreboard import settings_given

import surefoot as sf
from surefoot import config, history
from surefoot.rules import RULES

LIMIT = 1000


class ContinuousCartPole(gymnasium.Env):
    """The cart-pole of Barto, Sutton and Anderson 1983, with a force in [-10, 10] N and a reward of 1 a step.

    Euler steps of 20 ms; it ends where the cart is 2.4 m from the middle or the pole 12 degrees from upright.
    """

    gravity, cart, pole, length, force, tau = 9.8, 1.0, 0.1, 0.5, 10.0, 0.02

    def __init__(self) -> None:
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (4,), np.float32)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)
        self.state = np.zeros(4)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        """Near upright, near the middle, at rest nearly."""
        super().reset(seed=seed)
        self.state = self.np_random.uniform(-0.05, 0.05, 4)
        return self.state.astype(np.float32), {}

    def step(self, action: Any) -> Any:
        """One push."""
        _, speed, angle, turning = self.state
        force = self.force * float(np.clip(action[0], -1, 1))
        cosine, sine, mass = math.cos(angle), math.sin(angle), self.cart + self.pole
        pushed = (force + self.pole * self.length * turning**2 * sine) / mass
        falling = self.gravity * sine - cosine * pushed
        twist = falling / (self.length * (4 / 3 - self.pole * cosine**2 / mass))
        pull = pushed - self.pole * self.length * twist * cosine / mass
        change = np.array([speed, pull, turning, twist])
        self.state = self.state + self.tau * change
        over = bool(abs(self.state[0]) > 2.4 or abs(self.state[2]) > math.radians(12))
        return self.state.astype(np.float32), 1.0, over, False, {}


def make() -> gymnasium.Env:
    """The task with episodes of at most 1,000 steps."""
    return gymnasium.wrappers.TimeLimit(ContinuousCartPole(), LIMIT)


def one(seed: int, steps: int, rule: str, given: dict[str, Any], out: Path) -> dict[str, Any]:
    """One run: its returns on the way and at the end, and how far the normaliser moved its policy."""
    own = {name: given[name] for name in given if name not in config.run_options()}
    others = {name: value for name, value in given.items() if name not in own}
    run = sf.train(
        make, RULES[rule](**own), seed=seed, steps=steps, out=out, progress=False, evaluation_episodes=10,
        evaluate_every=max(steps // 10, 1), **others,
    )  # fmt: skip
    told = history.read(run.path)
    return {
        "seed": seed,
        "returns": [round(float(value)) for value in told.evaluated("mean")],
        "final": run.evaluation["return"]["mean"],
        "normaliser_kl": float(np.max(told.column("normaliser_kl"))),
        "smallest_std": float(told.column("smallest_std")[-1]),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--steps", type=int, default=600_000)
    parser.add_argument("--rule", default="trpo", choices=[name for name in config.RULES if name != "pi"])
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a setting of rule or run")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    given, rows = settings_given(arguments.set), []
    for seed in range(arguments.seeds):
        with tempfile.TemporaryDirectory() as folder:
            rows.append(one(seed, arguments.steps, arguments.rule, given, Path(folder) / "run"))
        row = rows[-1]
        told = f"final {row['final']:6.0f}  normaliser at most {row['normaliser_kl']:.1e} nats  {row['returns']}"
        print(f"seed {seed}: {told}", file=sys.stderr)
    finals = np.array([row["final"] for row in rows])
    if arguments.json:
        print(json.dumps(rows))
    else:
        print(f"{int(np.sum(finals >= LIMIT))} of {len(rows)} runs end solved; mean return {finals.mean():.0f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
