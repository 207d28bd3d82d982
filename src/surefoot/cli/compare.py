"""`surefoot compare`."""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any

from surefoot import config
from surefoot.cli import studies
from surefoot.cli.interruption import asked_to_stop
from surefoot.cli.options import add_rule_settings, add_run_options, given, settings_of_rules, whole
from surefoot.cli.train import note
from surefoot.comparison import COMPARED, make_comparison


def add(commands: Any) -> None:
    """The command and its options."""
    parser = commands.add_parser(
        "compare",
        help="train several rules with several seeds and the same budget, and say which is better",
        description="Train every rule with every seed and the same settings, and leave a study's folder with all runs, "
        "a table, a page and a picture: interquartile means with bootstrap intervals, the probability that one rule "
        "improves on another, time, and movement per update.",
        epilog="With --out FOLDER of a comparison that is there, its finished runs are kept, and the rules and seeds "
        "that it lacks are added.",
        allow_abbrev=False,
    )
    parser.add_argument("environment", metavar="ENV", help="the environment, as for surefoot train")
    parser.add_argument(
        "--rules",
        default=",".join(COMPARED),
        metavar="NAME,NAME,…",
        help=f"the rules (default {','.join(COMPARED)})",
    )
    parser.add_argument(
        "--seeds", type=whole, default=5, metavar="N", help="run N seeds, from --seed on (default 5) [at least 1]"
    )
    studies.add_lanes(parser, "as many as fit")
    parser.add_argument(
        "--out", metavar="DIR", help="the study's folder, new or with a comparison (default: a new one in runs/)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object on standard output and nothing else")
    add_run_options(parser)
    add_rule_settings(
        parser.add_argument_group("rules", "Each option says which rules have it, and goes to those of them compared."),
        list(COMPARED),
    )
    parser.set_defaults(command=run, exit_code=studies.exit_code)


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Compare, and tell the result."""
    names = [name.strip() for name in arguments.rules.split(",")]
    plain, settings = settings_of_rules(arguments, names), given(arguments, "run.")
    far = studies.far(settings)
    config.refuse_in_a_study(settings)
    make_comparison(plain, settings, arguments.seeds)  # refused before anything slow is imported

    from surefoot.rules import RULES
    from surefoot.studies import compare

    rules = [RULES[rule.name](**dataclasses.asdict(rule)) for rule in plain]
    ways = {"seeds": arguments.seeds, "out": arguments.out, "lanes": arguments.lanes, "told": note}
    studies.spread(arguments, settings)
    with asked_to_stop() as stop:
        path = compare(arguments.environment, rules, stop=stop, **ways, **far, **settings).path
    return studies.tell(path, quiet=arguments.json)
