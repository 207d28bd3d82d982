"""`surefoot replay`."""

from __future__ import annotations

import argparse
import dataclasses
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from surefoot import config
from surefoot.cli import devices
from surefoot.cli.options import add_rule_settings, settings_of_rules, whole
from surefoot.errors import printable
from surefoot.sweep import refuse_tabular

if TYPE_CHECKING:
    from surefoot.replaying import Replay

_RULES = [name for name, settings in config.RULES.items() if not settings.tabular_only]


def add(commands: Any) -> None:
    """The command and its options."""
    parser = commands.add_parser(
        "replay",
        help="apply several rules to a batch that a run kept, and compare their steps",
        description="Apply the run's own rule and others to the same batch from the same policy, and show their steps "
        "side by side: gains, divergences, lengths, cosines, and a picture of KL against surrogate gain. The run has "
        "to be trained with --keep-batches. Without --update: which updates it kept.",
        allow_abbrev=False,
    )
    parser.add_argument("run", metavar="RUN", help="a run's folder")
    parser.add_argument("--update", type=whole, metavar="N", help="which of the updates that the run kept")
    parser.add_argument("--rules", metavar="RULE,…", help=f"beside the run's own rule (default {','.join(_RULES)})")
    parser.add_argument("--out", metavar="FILE", help="the picture (default replay-N.png in the run's folder)")
    parser.add_argument("--json", action="store_true", help="print one JSON object on standard output and nothing else")
    group = parser.add_argument_group(
        "rules", "An option goes to each of --rules that has it; the run's own rule is applied as it was."
    )
    add_rule_settings(group, _RULES)
    parser.set_defaults(command=run)


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Apply the rules, and tell what each did."""
    settings = _settings(arguments)  # refused before anything slow is imported
    if arguments.update is None:
        return _kept(arguments)

    from surefoot.compilation import keep_compiled_programs
    from surefoot.replaying import replay
    from surefoot.report.replay import replay_picture
    from surefoot.rules import RULES

    devices.show(arguments, devices.settings_in(arguments.run))
    keep_compiled_programs()
    rules = [RULES[rule.name](**dataclasses.asdict(rule)) for rule in settings]
    done = replay(arguments.run, update=arguments.update, rules=rules)
    picture = Path(arguments.out) if arguments.out else done.run / f"replay-{done.update}.png"
    title = f"{done.run.name}  ·  update {done.update}  ·  {done.rows} rows"
    names = [step.name for step in done.steps]
    replay_picture(title, done.traces(), names, done.cosine, done.fisher_cosine, picture)
    if not arguments.json:
        print("\n".join(table(done)))
        print(f"picture  {printable(picture)}")
    return {**done.as_dict(), "picture": str(picture)}


def _settings(arguments: argparse.Namespace) -> list[config.RuleSettings]:
    """The settings of each rule that was asked for. Raises SettingError."""
    names = _RULES if arguments.rules is None else [name.strip() for name in arguments.rules.split(",")]
    settings = settings_of_rules(arguments, names)
    for rule in settings:
        refuse_tabular(type(rule))
    return settings


def _kept(arguments: argparse.Namespace) -> dict[str, Any]:
    from surefoot.kept import kept_updates
    from surefoot.resuming import begun_with

    folder = Path(arguments.run)
    begun_with(folder)
    updates = kept_updates(folder)
    if not arguments.json:
        told = ", ".join(map(str, updates)) or "none; train with --keep-batches"
        print(f"kept updates  {told}")
        if updates:
            print(f"replay one    surefoot replay {printable(folder)} --update {updates[-1]}")
    return {"run": str(folder), "updates": updates}


def table(done: Replay) -> list[str]:
    """What each rule did as lines: one quantity a line, one rule a column, and then the cosines between the steps."""
    names = [step.name for step in done.steps]
    lines = [("", *names)]
    for label, value in _QUANTITIES:
        lines.append((label, *(value(step.as_dict()) for step in done.steps)))
    cosines = [("cosine", *names)]
    for row, name in enumerate(names):
        cells = [(done.fisher_cosine if row < column else done.cosine)[row, column] for column in range(len(names))]
        cosines.append((name, *("" if row == column else _cosine(cell) for column, cell in enumerate(cells))))
    first = max(len(line[0]) for line in lines + cosines)
    width = max(len(cell) for line in lines + cosines for cell in line[1:])
    laid_out = [
        "  ".join([f"{line[0]:<{first}}", *(f"{cell:>{width}}" for cell in line[1:])]).rstrip()
        for line in lines + cosines
    ]
    return [
        f"update {done.update} of {printable(done.run)}, {done.rows} rows; {done.repetition}",
        "",
        *laid_out[: len(lines)],
        "",
        *laid_out[len(lines) :],
        "cosines between steps: below the diagonal in the parameters, above it in the old policy's Fisher metric",
    ]


def _cosine(value: float) -> str:
    return "\N{EN DASH}" if value != value else f"{value:.3f}"


def _number(key: str) -> Any:
    return lambda told: f"{told[key]:.4g}"


def _per_root(told: dict[str, Any]) -> str:
    """What a step gains for its length: the same for every length where its models hold."""
    return f"{told['surrogate_gain'] / math.sqrt(told['kl']):.4g}" if told["kl"] > 0 else "\N{EN DASH}"


_QUANTITIES = (
    ("accepted", lambda told: "yes" if told["accepted"] else "no"),
    ("predicted gain", _number("predicted_gain")),
    ("surrogate gain", _number("surrogate_gain")),
    ("predicted KL", _number("predicted_kl")),
    ("gain per √KL", _per_root),
    ("KL(old‖new)", _number("kl")),
    ("KL(new‖old)", _number("reverse_kl")),
    ("largest KL", _number("max_kl")),
    ("mean TV", _number("tv")),
    ("entropy change", _number("entropy_change")),
    ("step length", _number("step_length")),
    ("Fisher length", _number("fisher_length")),
    ("backtracks", lambda told: str(told["backtracks"])),
    ("milliseconds", lambda told: f"{1000 * told['seconds']:.1f}"),
)
