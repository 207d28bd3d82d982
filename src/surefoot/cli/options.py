"""What every command's parser is made of: one-line errors, and options made from settings."""

from __future__ import annotations

import argparse
import dataclasses
import sys
import typing
from collections.abc import Callable
from typing import Any, NoReturn

from surefoot import config
from surefoot.errors import SettingError, did_you_mean, printable
from surefoot.settings import field_of, legal_range

EXAMPLE = "surefoot train CartPole-v1"
HINTS = {
    "ENV": f"type for example `{EXAMPLE}`",
    "--to": "name the file's format, as in --to onnx",
    "RUN": "name a run's folder, as `surefoot train` prints it",
    "COMMAND": f"type for example `{EXAMPLE}`, or `surefoot --help`",
}
"""What to type, by the argument that is missing."""


class Parser(argparse.ArgumentParser):
    """Final: says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        """Print one line on standard error and exit with 2."""
        prefix = "unrecognized arguments: "
        if message.startswith(prefix):
            unknown = message.removeprefix(prefix).partition(" ")[0].partition("=")[0]
            message = f"{unknown or repr(unknown)} is no option{did_you_mean(unknown, self._all_options())}"
        elif message.startswith("the following arguments are required: "):
            missing = message.removeprefix("the following arguments are required: ")
            message = f"{missing} is missing; {HINTS.get(missing, 'see --help')}"
        print(f"surefoot: {printable(message)}", file=sys.stderr)
        raise SystemExit(2)

    def _all_options(self) -> list[str]:
        parsers = [self]
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                parsers += action.choices.values()
        return [option for parser in parsers for option in parser._option_string_actions]


def whole(text: str) -> int:
    """A whole number as people write it: 1000, 1e6."""
    try:
        value = float(text)
        exact = int(value) if "e" in text.lower() or "." in text else int(text)
    except (ValueError, OverflowError):
        raise argparse.ArgumentTypeError(f"a whole number is wanted, but {text!r} came") from None
    if exact != value:
        raise argparse.ArgumentTypeError(f"a whole number is wanted, but {text!r} came")
    return exact


def number(text: str) -> float:
    """Any number, inf and nan too: the settings say what is legal."""
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"a number is wanted, but {text!r} came") from None


def or_none(read: Callable[[str], Any]) -> Callable[[str], Any]:
    """`read`, but for the word none, which some settings have a meaning for."""
    return lambda text: None if text.lower() == "none" else read(text)


def add_setting(
    group: Any, option: str, destination: str, owner: type, item: dataclasses.Field, note: str = ""
) -> None:
    """One command-line option for one setting; absent from the result unless given."""
    kind = typing.get_type_hints(owner)[item.name]
    limits = item.metadata.get("limits", {})
    default = " ".join(map(str, item.default)) if isinstance(item.default, tuple) else item.default
    text = f"{item.metadata['help']} (default {default}{note})".replace("%", "%%")
    if limits:
        text = f"{text} [{legal_range(limits)}]"
    options = [o for o in typing.get_args(kind) if o is not type(None)]
    sequence = any(typing.get_origin(part) is tuple for part in (kind, *options))
    common = {"dest": destination, "default": argparse.SUPPRESS, "help": text}
    if typing.get_origin(kind) is typing.Literal:
        group.add_argument(option, choices=options, **common)
    elif kind is bool:
        group.add_argument(option, action=argparse.BooleanOptionalAction, **common)
    elif str in options:
        group.add_argument(option, type=or_none(str), metavar="TEXT", **common)
    elif sequence:
        group.add_argument(option, type=whole, nargs="+", metavar="N", **common)
    else:
        is_whole = kind is int or int in options
        read = whole if is_whole else number
        group.add_argument(option, type=or_none(read) if options else read, metavar="N" if is_whole else "X", **common)


def add_run_options(parser: Any) -> None:
    """Every setting of a run, by group."""
    groups = {"": parser.add_argument_group("run")}
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


def given(arguments: argparse.Namespace, group: str) -> dict[str, Any]:
    """What the command line says of the settings of a run ("run.") or of a rule ("rule."), by their names."""
    return {name.removeprefix(group): value for name, value in vars(arguments).items() if name.startswith(group)}


def add_rule_options(parser: Any, names: list[str]) -> None:
    """`--rule`, `--radius` and every rule's own `--rule.NAME`, for the rules of these names."""
    rules = parser.add_argument_group("rule", "Each option says which rules have it; another rule refuses it.")
    rules.add_argument("--rule", choices=names, default=names[0], help=f"how to improve the policy ({names[0]})")
    add_rule_settings(rules, names)


def add_rule_settings(rules: Any, names: list[str]) -> None:
    """`--radius` and every rule's own `--rule.NAME` in the group `rules`, for the rules of these names."""
    known = {name: config.RULES[name] for name in names}
    seen: dict[str, list[str]] = {}
    for rule_name, settings in known.items():
        for item in dataclasses.fields(settings):
            seen.setdefault(item.name, []).append(rule_name)
    for name, having in seen.items():
        owner = config.RULES[having[0]]
        item = field_of(owner, name)
        defaults = {rule: field_of(config.RULES[rule], name).default for rule in having}
        note = "".join(f", {rule} {value}" for rule, value in defaults.items() if value != item.default)
        add_setting(rules, _rule_option(name), f"rule.{name}", owner, item, f"{note}; {', '.join(having)}")


def rule_settings(arguments: argparse.Namespace, **defaults: Any) -> config.RuleSettings:
    """The chosen rule's settings; `defaults` stand where the command line says nothing and the rule has them.

    Raises SettingError for an option that the rule lacks, and for an illegal value.
    """
    told = given(arguments, "rule.")
    rule_class = config.RULES[arguments.rule]
    known = [item.name for item in dataclasses.fields(rule_class)]
    for name in told:
        if name not in known:
            options = ", ".join(map(_rule_option, known)) or "none"
            raise SettingError(f"{_rule_option(name)} is no option of the rule {arguments.rule}; it has {options}")
    return rule_class(**{name: value for name, value in defaults.items() if name in known} | told)


def settings_of_rules(arguments: argparse.Namespace, names: list[str]) -> list[config.RuleSettings]:
    """The settings of each rule of these names: of what the command line says, all that it has.

    Raises SettingError for an unknown rule, an option that none of them has, and an illegal value.
    """
    told = given(arguments, "rule.")
    having: dict[str, set[str]] = {}
    for rule in names:
        if rule not in config.RULES:
            known = ", ".join(config.RULES)
            raise SettingError(f"rules must be of {known}, but {rule!r} came{did_you_mean(rule, config.RULES)}")
        having[rule] = {item.name for item in dataclasses.fields(config.RULES[rule])}
    for name in told:
        if not any(name in own for own in having.values()):
            raise SettingError(f"{_rule_option(name)} is no option of any of the rules {', '.join(names)}")
    return [
        config.RULES[rule](**{name: value for name, value in told.items() if name in having[rule]}) for rule in names
    ]


def _rule_option(name: str) -> str:
    return "--radius" if name == "radius" else f"--rule.{name}"


def cut_note(evaluation: dict[str, Any]) -> str:
    """What a user is told of episodes that had not ended when the evaluation cut them; nothing where none was."""
    cut = evaluation["cut"]
    return f"; {cut} had not ended and {'was' if cut == 1 else 'were'} cut" if cut else ""
