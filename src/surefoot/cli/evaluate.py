"""`surefoot evaluate`."""

from __future__ import annotations

import argparse
from typing import Any

from surefoot.cli.options import cut_note, whole
from surefoot.errors import RunError, SettingError
from surefoot.sources import refuse_foreign_code


def add(commands: Any) -> None:
    """The command and its options."""
    parser = commands.add_parser(
        "evaluate",
        help="play whole episodes with a trained policy",
        description="Play whole episodes with the policy of a run, on Gymnasium's own task.",
        allow_abbrev=False,
    )
    parser.add_argument("run", metavar="RUN", help="a run's folder")
    parser.add_argument("--episodes", type=whole, default=20, metavar="N", help="how many (default 20)")
    parser.add_argument("--seed", type=whole, default=0, metavar="N", help="seed of the episodes (default 0)")
    parser.add_argument("--sample", action="store_true", help="sample actions instead of taking the most probable")
    parser.add_argument("--video", metavar="FILE", help="film one episode: .gif, or .mp4 with imageio-ffmpeg")
    parser.add_argument(
        "--allow-env", action="store_true", help="let the run's package.module:callable environment be imported"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object on standard output and nothing else")
    parser.set_defaults(command=run)


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Evaluate, and tell the result."""
    if arguments.episodes < 1:
        raise SettingError(f"episodes must be a whole number, at least 1, but {arguments.episodes} came")
    if arguments.seed < 0:
        raise SettingError(f"seed must be a whole number, at least 0, but {arguments.seed} came")

    from surefoot.agent import load
    from surefoot.evaluation import evaluate, film

    agent = load(arguments.run)
    if not agent.environment:
        raise RunError(f"{arguments.run} does not say which environment it was trained in")
    refuse_foreign_code(arguments.run, agent.environment, allowed=arguments.allow_env)
    result = evaluate(
        agent,
        agent.environment,
        episodes=arguments.episodes,
        seed=arguments.seed,
        deterministic=not arguments.sample,
    )
    if arguments.video:
        film(agent, agent.environment, arguments.video, seed=arguments.seed)
        result["video"] = arguments.video
    if not arguments.json:
        kind = "sampled" if arguments.sample else "deterministic"
        told = result["return"]
        print(f"return  {told['mean']:.1f} ± {told['std']:.1f}  ({told['episodes']} {kind} episodes)")
        print(f"length  {result['length']['mean']:.1f} steps{cut_note(result)}")
        if arguments.video:
            print(f"video   {arguments.video}")
    return {"run": arguments.run, **result}
