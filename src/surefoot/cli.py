"""The command: `surefoot train`, `surefoot evaluate`.

Options, their help and their legal ranges come from `surefoot.config`; nothing slow is imported before an
option was understood. Whatever the user got wrong is one line on standard error and exit code 2.
"""

from __future__ import annotations

import argparse
import dataclasses
import signal
import sys
import typing
import warnings
from typing import Any, NoReturn

from surefoot import config
from surefoot._version import __version__
from surefoot.errors import RunError, SettingError, SurefootError, did_you_mean

_EXAMPLE = "surefoot train CartPole-v1"


class _Parser(argparse.ArgumentParser):
    """Final: says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        prefix = "unrecognized arguments: "
        if message.startswith(prefix):
            unknown = message.removeprefix(prefix).split()[0].split("=")[0]
            message = f"{unknown} is no option{did_you_mean(unknown, self._all_options())}"
        elif message.startswith("the following arguments are required: "):
            missing = message.removeprefix("the following arguments are required: ")
            message = f"{missing} is missing; {_hint(missing)}"
        print(f"surefoot: {' '.join(message.split())}", file=sys.stderr)
        raise SystemExit(2)

    def _all_options(self) -> list[str]:
        parsers = [self]
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                parsers += action.choices.values()
        return [option for parser in parsers for option in parser._option_string_actions]


def _hint(missing: str) -> str:
    return {
        "ENV": f"type for example `{_EXAMPLE}`",
        "RUN": "name a run's folder, as `surefoot train` prints it",
        "COMMAND": f"type for example `{_EXAMPLE}`, or `surefoot --help`",
    }.get(missing, "see --help")


def _whole(text: str) -> int:
    try:
        number = float(text)
        whole = int(number) if "e" in text.lower() or "." in text else int(text)
    except (ValueError, OverflowError):
        raise argparse.ArgumentTypeError(f"a whole number is wanted, but {text!r} came") from None
    if whole != number:
        raise argparse.ArgumentTypeError(f"a whole number is wanted, but {text!r} came")
    return whole


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"a number is wanted, but {text!r} came") from None


def _add_setting(
    group: Any, option: str, destination: str, owner: type, item: dataclasses.Field, note: str = ""
) -> None:
    """One command-line option for one setting; absent from the result unless given."""
    kind = typing.get_type_hints(owner)[item.name]
    limits = item.metadata.get("limits", {})
    default = " ".join(map(str, item.default)) if isinstance(item.default, tuple) else item.default
    text = f"{item.metadata['help']} (default {default}{note})".replace("%", "%%")
    if limits:
        text = f"{text} [{config.legal_range(limits)}]"
    options = [o for o in typing.get_args(kind) if o is not type(None)]
    common = {"dest": destination, "default": argparse.SUPPRESS, "help": text}
    if typing.get_origin(kind) is typing.Literal:
        group.add_argument(option, choices=options, **common)
    elif kind is bool:
        group.add_argument(option, action=argparse.BooleanOptionalAction, **common)
    elif typing.get_origin(kind) is tuple:
        group.add_argument(option, type=_whole, nargs="+", metavar="N", **common)
    else:
        whole = kind is int or int in options
        group.add_argument(option, type=_whole if whole else _number, metavar="N" if whole else "X", **common)


def _add_train(commands: Any) -> None:
    parser = commands.add_parser(
        "train",
        help="train a policy in an environment and leave a run folder",
        description="Train a policy, show how it goes, evaluate it and leave a run folder with a learning curve.",
        epilog="ENV is a Gymnasium id (CartPole-v1) or package.module:callable that returns a Gymnasium environment.",
        allow_abbrev=False,
    )
    parser.add_argument("environment", metavar="ENV", help="the environment")
    parser.add_argument(
        "--out", metavar="DIR", help="the run's folder; must hold no run yet (default: a new one in runs/)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object on standard output and nothing else")
    run = parser.add_argument_group("run")
    groups = {"": run}
    titles = {"network": "policy network", "critic": "critic", "estimator": "advantages", "collection": "collection"}
    for name, (group, _) in config.run_options().items():
        if group not in groups:
            groups[group] = parser.add_argument_group(titles[group])
        owner, item = config.option_field(name)
        _add_setting(groups[group], f"--{name.replace('_', '-')}", f"run.{name}", owner, item)
    rules = parser.add_argument_group("rule", "Each option says which rules have it; another rule refuses it.")
    names = list(config.RULES)
    rules.add_argument("--rule", choices=names, default=names[0], help=f"how to improve the policy ({names[0]})")
    seen: dict[str, list[str]] = {}
    for rule_name, settings in config.RULES.items():
        for item in dataclasses.fields(settings):
            seen.setdefault(item.name, []).append(rule_name)
    for name, having in seen.items():
        owner = config.RULES[having[0]]
        item = config.field_of(owner, name)
        defaults = {rule: config.field_of(config.RULES[rule], name).default for rule in having}
        note = "".join(f", {rule} {value}" for rule, value in defaults.items() if value != item.default)
        option = "--radius" if name == "radius" else f"--rule.{name}"
        _add_setting(rules, option, f"rule.{name}", owner, item, f"{note}; {', '.join(having)}")
    parser.set_defaults(command=_train)


def _add_evaluate(commands: Any) -> None:
    parser = commands.add_parser(
        "evaluate",
        help="play whole episodes with a trained policy",
        description="Play whole episodes with the policy of a run, on Gymnasium's own task.",
        allow_abbrev=False,
    )
    parser.add_argument("run", metavar="RUN", help="a run's folder")
    parser.add_argument("--episodes", type=_whole, default=20, metavar="N", help="how many (default 20)")
    parser.add_argument("--seed", type=_whole, default=0, metavar="N", help="seed of the episodes (default 0)")
    parser.add_argument("--sample", action="store_true", help="sample actions instead of taking the most probable")
    parser.add_argument("--video", metavar="FILE", help="film one episode: .gif, or .mp4 with imageio-ffmpeg")
    parser.add_argument(
        "--allow-env", action="store_true", help="let the run's package.module:callable environment be imported"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object on standard output and nothing else")
    parser.set_defaults(command=_evaluate)


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = _Parser(
        prog="surefoot",
        description="Policy optimisation that knows how far it may step.",
        epilog=f"Start with: {_EXAMPLE}",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"surefoot {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True, dest="command_name")
    _add_train(commands)
    _add_evaluate(commands)
    return parser


def _train(arguments: argparse.Namespace) -> dict[str, Any]:
    given = vars(arguments)
    settings = {name.removeprefix("run."): value for name, value in given.items() if name.startswith("run.")}
    rule_settings = {name.removeprefix("rule."): value for name, value in given.items() if name.startswith("rule.")}
    rule_class = config.RULES[arguments.rule]
    known = [item.name for item in dataclasses.fields(rule_class)]
    for name in rule_settings:
        if name not in known:
            options = ", ".join("--radius" if n == "radius" else f"--rule.{n}" for n in known)
            raise SettingError(f"--rule.{name} is no option of the rule {arguments.rule}; it has {options}")
    plain_rule = rule_class(**rule_settings)
    config.make_run(**settings)  # refuses what is illegal before anything slow is imported

    from surefoot.rules import RULES
    from surefoot.training import train

    rule = RULES[arguments.rule](**dataclasses.asdict(plain_rule))
    run = train(arguments.environment, rule, out=arguments.out, **settings)
    if not arguments.json:
        result = run.evaluation["return"]
        print(f"evaluation  {result['mean']:.1f} ± {result['std']:.1f}  ({result['episodes']} deterministic episodes)")
        print(f"run         {run.path}")
        print(f"picture     {run.path / 'learning_curve.png'}")
    return {
        "run": str(run.path),
        "steps": run.steps,
        "updates": run.updates,
        "seconds": run.seconds,
        **run.evaluation,
    }


def _evaluate(arguments: argparse.Namespace) -> dict[str, Any]:
    if arguments.episodes < 1:
        raise SettingError(f"episodes must be a whole number, at least 1, but {arguments.episodes} came")
    if arguments.seed < 0:
        raise SettingError(f"seed must be a whole number, at least 0, but {arguments.seed} came")

    from surefoot.agent import load
    from surefoot.evaluation import evaluate, film

    agent = load(arguments.run)
    if not agent.environment:
        raise RunError(f"{arguments.run} does not say which environment it was trained in")
    if ":" in agent.environment and not arguments.allow_env:
        raise RunError(
            f"{arguments.run} names the environment {agent.environment!r}, which runs code of that module; "
            "add --allow-env if it is yours"
        )
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
        print(f"length  {result['length']['mean']:.1f} steps")
        if arguments.video:
            print(f"video   {arguments.video}")
    return {"run": arguments.run, **result}


def _silence_dependencies() -> None:
    """What Gymnasium warns of is its own to mend, and what its workers log stands in our one line."""
    import gymnasium

    gymnasium.logger.min_level = gymnasium.logger.ERROR + 1
    warnings.filterwarnings("ignore", module="gymnasium")


def _terminate(*_: Any) -> NoReturn:
    raise SystemExit(143)


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    try:
        arguments = build_parser().parse_args(argv)
    except SystemExit as done:
        return int(done.code or 0)
    signal.signal(signal.SIGTERM, _terminate)
    _silence_dependencies()
    try:
        result = arguments.command(arguments)
    except SurefootError as error:
        print(f"surefoot: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("surefoot: stopped; what was recorded until then is in the run's folder", file=sys.stderr)
        return 130
    if arguments.json:
        print(config.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
