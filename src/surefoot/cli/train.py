"""`surefoot train`."""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any

from surefoot import config
from surefoot.cli.interruption import asked_to_stop
from surefoot.cli.options import add_rule_options, add_setting, rule_settings
from surefoot.errors import SettingError, printable


def add(commands: Any) -> None:
    """The command and its options."""
    parser = commands.add_parser(
        "train",
        help="train a policy in an environment and leave a run folder",
        description="Train a policy, show how it goes, evaluate it and leave a run folder with a report.",
        epilog="ENV is a Gymnasium id (CartPole-v1) or package.module:callable that returns a Gymnasium environment.",
        allow_abbrev=False,
    )
    parser.add_argument("environment", metavar="ENV", help="the environment")
    parser.add_argument(
        "--out", metavar="DIR", help="the run's folder; must hold no run yet (default: a new one in runs/)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object on standard output and nothing else")
    parser.add_argument("--tensorboard", action="store_true", help="write the metrics for TensorBoard too")
    general = parser.add_argument_group("run")
    groups = {"": general}
    titles = {
        "network": "policy network",
        "critic": "critic",
        "estimator": "advantages",
        "collection": "collection",
        "certification": "certificates and guard",
    }
    for name, (group, _) in config.run_options().items():
        if group not in groups:
            groups[group] = parser.add_argument_group(titles[group])
        owner, item = config.option_field(name)
        add_setting(groups[group], f"--{name.replace('_', '-')}", f"run.{name}", owner, item)
    add_rule_options(parser, list(config.RULES))
    parser.set_defaults(command=run)


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Train, and tell the result."""
    given = vars(arguments)
    settings = {name.removeprefix("run."): value for name, value in given.items() if name.startswith("run.")}
    plain_rule = rule_settings(arguments)
    if plain_rule.tabular_only:
        raise SettingError(f"the rule {arguments.rule} is for finite MDPs; `surefoot exact` has it")
    config.make_run(**settings)  # refuses what is illegal before anything slow is imported

    from surefoot.rules import RULES
    from surefoot.training import train

    rule = RULES[arguments.rule](**dataclasses.asdict(plain_rule))
    with asked_to_stop() as stop:
        done = train(
            arguments.environment, rule, out=arguments.out, tensorboard=arguments.tensorboard, stop=stop, **settings
        )
    return tell(done, quiet=arguments.json)


def tell(done: Any, *, quiet: bool) -> dict[str, Any]:
    """Print what a finished run came to, and return it as `--json` does."""
    if not quiet:
        result = done.evaluation["return"]
        print(f"evaluation  {result['mean']:.1f} ± {result['std']:.1f}  ({result['episodes']} deterministic episodes)")
        print(f"updates     {_account(done.calibration)}")
        if done.findings:
            print(f"doctor      {_worst(done)}")
        print(f"run         {printable(done.path)}")
        print(f"report      {printable(done.path / 'report.html')}")
    return {
        "run": str(done.path),
        "steps": done.steps,
        "updates": done.updates,
        "seconds": done.seconds,
        **done.evaluation,
    }


def _account(told: Any) -> str:
    """How the updates kept their promises, in one line."""
    parts = [f"{told.updates}"]
    if told.lowered is not None:
        parts.append(f"{told.lowered:.0%} lowered the return beyond noise")
    if told.left is not None:
        parts.append(f"{told.left:.0%} left the trust region")
    if told.judged:
        parts.append(f"realised {told.realised:.3g} of {told.promised:.3g} promised")
    return ", ".join(parts)


def _worst(done: Any) -> str:
    """The worst finding, and where the others are."""
    worst, more = done.findings[0], len(done.findings) - 1
    others = f"; {more} more" if more else ""
    return f"{worst.title}: {worst.evidence} ({worst.name}{others}: surefoot doctor {printable(done.path)})"
