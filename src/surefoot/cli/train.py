"""`surefoot train`."""

from __future__ import annotations

import argparse
import dataclasses
import math
import sys
from typing import Any

from surefoot import config
from surefoot.cli import devices, studies
from surefoot.cli.interruption import asked_to_stop
from surefoot.cli.options import HINTS, add_rule_options, add_run_options, cut_note, given, rule_settings
from surefoot.errors import SettingError, printable
from surefoot.recipe import Recipe, read_recipe
from surefoot.sources import refuse_foreign_code
from surefoot.sweep import make_sweep, plain_settings, without_following


def add(commands: Any) -> None:
    """The command and its options."""
    parser = commands.add_parser(
        "train",
        help="train a policy in an environment and leave a run folder",
        description="Train a policy, show how it goes, evaluate it and leave a run folder with a report; with several "
        "seeds or a sweep, a study's folder with all runs, a table and a picture.",
        epilog="ENV is a Gymnasium id (CartPole-v1) or package.module:callable that returns a Gymnasium "
        "environment; or one written in JAX: gymnax:CartPole-v1, brax:ant, or a callable annotated to return a "
        "FunctionalEnvironment.",
        allow_abbrev=False,
    )
    parser.add_argument("environment", metavar="ENV", nargs="?", help="the environment (default: that of --config)")
    parser.add_argument(
        "--config",
        metavar="FILE",
        help="begin with the environment, rule and settings of a run's config.json, or of a file like it; options "
        "given here stand before it",
    )
    parser.add_argument(
        "--allow-env", action="store_true", help="let a package.module:callable that --config names be imported"
    )
    parser.add_argument(
        "--out", metavar="DIR", help="the run's folder; must hold no run yet (default: a new one in runs/)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object on standard output and nothing else")
    parser.add_argument("--tensorboard", action="store_true", help="write the metrics for TensorBoard too")
    add_run_options(parser)
    add_rule_options(parser, list(config.RULES))
    studies.add_options(parser)
    parser.set_defaults(command=run, rule=None, exit_code=studies.exit_code)


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Train, and tell the result."""
    recipe = read_recipe(arguments.config) if arguments.config else Recipe()
    environment = arguments.environment or recipe.environment
    if environment is None:
        raise SettingError(f"ENV is missing; {HINTS['ENV']}")
    typed = environment == arguments.environment
    refuse_foreign_code(arguments.config, environment, allowed=typed or arguments.allow_env)
    swept = studies.swept(arguments.sweep)
    settings = _settings(arguments, recipe, swept)
    arguments.rule = arguments.rule or recipe.rule or next(iter(config.RULES))
    known = recipe.rule_settings if arguments.rule == recipe.rule else {}
    known = without_following(config.RULES[arguments.rule], known)
    plain_rule = rule_settings(arguments, **_without(known, swept))
    if plain_rule.tabular_only:
        raise SettingError(f"the rule {arguments.rule} is for finite MDPs; `surefoot exact` has it")
    many = arguments.seeds * math.prod(map(len, swept.values())) > 1
    far = {}
    if many:
        far = studies.far(settings)
        config.refuse_in_a_study(settings)
        studies.refuse_for_studies(arguments, "tensorboard")
    wanted = make_sweep(plain_rule, settings, arguments.seeds, swept)  # refused before anything slow is imported
    if not many and arguments.lanes is not None:
        raise SettingError("--lanes is for a study, and this is a single run; leave it out, or ask for more --seeds")

    from surefoot.record import differing_versions
    from surefoot.rules import RULES

    if recipe.versions and (differing := differing_versions(recipe.versions)):
        told = f"the same bits are not to be expected, versions differ from those of {arguments.config}"
        note(f"{told}: {', '.join(differing)}")
    shared = {"out": arguments.out, "told": note}
    if many:
        from surefoot.studies import study

        rule = RULES[arguments.rule](**dataclasses.asdict(plain_rule))
        ways = {"seeds": arguments.seeds, "sweep": swept, "lanes": arguments.lanes}
        studies.spread(arguments, settings)
        with asked_to_stop() as stop:
            path = study(environment, rule, stop=stop, **ways, **far, **shared, **settings).path
        return studies.tell(path, quiet=arguments.json)
    from surefoot.training import train

    (point,) = wanted.points
    rule = RULES[arguments.rule](**dataclasses.asdict(wanted.rule(point)))
    settings = plain_settings(wanted.run(point, wanted.every_seed[0]))
    devices.show(arguments, settings)
    with asked_to_stop() as stop:
        done = train(environment, rule, tensorboard=arguments.tensorboard, stop=stop, **shared, **settings)
    return tell(done, quiet=arguments.json)


def _settings(arguments: argparse.Namespace, recipe: Recipe, swept: dict[str, Any]) -> dict[str, Any]:
    """The run's settings, of the recipe and given; what is swept stands before the recipe's.

    Raises SettingError where one is given and swept as well.
    """
    own = given(arguments, "run.")
    for name in (*own, *given(arguments, "rule.")):
        if name in swept:
            raise SettingError(f"{name} is given a value and swept as well; leave one of them out")
    return _without(recipe.settings, swept) | own


def _without(settings: dict[str, Any], swept: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name not in swept}


def note(line: str) -> None:
    """Say on standard error what a run has to tell beside its result."""
    print(f"surefoot: {printable(line)}", file=sys.stderr, flush=True)


def tell(done: Any, *, quiet: bool) -> dict[str, Any]:
    """Print what a finished run came to, and return it as `--json` does."""
    if not quiet:
        result = done.evaluation["return"]
        played = f"{result['episodes']} deterministic episodes{cut_note(done.evaluation)}"
        print(f"evaluation  {result['mean']:.1f} ± {result['std']:.1f}  ({played})")
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
