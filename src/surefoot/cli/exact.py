"""`surefoot exact`."""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any

from surefoot import config
from surefoot.cli.options import add_rule_options, number, rule_settings, whole
from surefoot.errors import SettingError, printable
from surefoot.settings import check, dumps

_LINES = 25


def add(commands: Any) -> None:
    """The command and its options."""
    parser = commands.add_parser(
        "exact",
        help="improve a policy in a finite MDP, everything computed and nothing sampled",
        description="Exact updates from the uniform policy in a finite MDP: for each the true gain, the surrogate's, "
        "the KL and the best lower bound; a table and a picture.",
        epilog="MDP is a Gymnasium environment with a table of transitions (FrozenLake-v1, FrozenLake8x8-v1, "
        "CliffWalking-v1, Taxi-v4), a .npz or .json file, or one of the library: equality, bandit, three-decisions, "
        "dropped-discount, chain, grid, garnet. Unless said otherwise damping is 0, the solver is the closed form "
        "and advantages are not standardised.",
        allow_abbrev=False,
    )
    parser.add_argument("mdp", metavar="MDP", help="the finite MDP")
    parser.add_argument("--updates", type=whole, default=50, metavar="N", help="how many updates (default 50)")
    add_model_options(parser)
    parser.add_argument("--seed", type=whole, default=0, metavar="N", help="seed of rules that draw (default 0)")
    parser.add_argument("--out", metavar="DIR", help="the folder for the results (default: a new one in runs/)")
    parser.add_argument("--json", action="store_true", help="print one JSON object on standard output and nothing else")
    parser.add_argument(
        "--eta",
        type=number,
        metavar="X",
        help="in place of --radius, for npg: the step of length X along the natural gradient of the return, "
        "pi' proportional to pi exp(X A / (1 - discount)); 0 stays, large is greedy",
    )
    add_rule_options(parser, list(config.RULES))
    parser.set_defaults(command=run)


def add_model_options(parser: Any) -> None:
    """What `exact` and `certify` may change of an MDP."""
    parser.add_argument(
        "--discount", type=number, metavar="X", help="discount factor (default: the MDP's own, .99 for Gymnasium's)"
    )
    parser.add_argument(
        "--horizon", type=whole, metavar="N", help="how many decisions (default: the MDP's own; Gymnasium's: no end)"
    )


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Improve, and tell the result."""
    if arguments.updates < 1:
        raise SettingError(f"updates must be a whole number, at least 1, but {arguments.updates} came")
    config.make_run(seed=arguments.seed)
    if arguments.eta is not None:
        if "eta" not in [item.name for item in dataclasses.fields(config.RULES[arguments.rule])]:
            raise SettingError(f"--eta is no option of the rule {arguments.rule}; npg has it")
        if hasattr(arguments, "rule.radius"):
            raise SettingError("--eta stands in place of --radius, but both came; leave one out")

    from surefoot.compilation import keep_compiled_programs
    from surefoot.improvement import EXACT_DEFAULTS, improve
    from surefoot.record import new_run_folder
    from surefoot.tabular.toy_text import load

    keep_compiled_programs()
    settings = dict(EXACT_DEFAULTS)
    if arguments.eta is not None:
        settings["eta"] = check(config.NPG, "eta", arguments.eta)
    plain_rule = rule_settings(arguments, **settings)
    mdp = load(arguments.mdp, discount=arguments.discount, horizon=arguments.horizon)
    given = dataclasses.asdict(plain_rule)
    if arguments.eta is not None:
        # The rule's step is per unit of the advantage of one step, the option's of the return.
        given["eta"] = arguments.eta * mdp.effective_horizon

    from surefoot.report.exact import picture
    from surefoot.rules import RULES

    rule = RULES[arguments.rule](**given)
    folder = new_run_folder(arguments.out, f"exact-{arguments.mdp}-{arguments.rule}")
    optimum = mdp.policy_iteration()
    account = _Account(optimum.expected_return, quiet=arguments.json, updates=arguments.updates)
    initial = mdp.evaluate(mdp.uniform())
    account.start(mdp, initial.expected_return)
    policy: Any = initial.probabilities
    for step in improve(mdp, rule, updates=arguments.updates, seed=arguments.seed):
        account.add(step)
        policy = step.policy.probabilities().reshape(mdp.policy_shape)
    described = {
        "mdp": arguments.mdp,
        "discount": mdp.discount,
        "horizon": mdp.horizon,
        "rule": arguments.rule,
        "seed": arguments.seed,
        "settings": given,
        "trust_region": plain_rule.trust_region,
    }
    _write(folder, described, account.result, initial.probabilities, policy)
    drawn = picture(folder)
    if not arguments.json:
        print(f"picture     {printable(drawn)}")
        print(f"policies    {printable(folder / 'policy_initial.npy')}, {printable(folder / 'policy_final.npy')}")
    return account.result


def _write(folder: Any, described: dict[str, Any], result: dict[str, Any], initial: Any, final: Any) -> None:
    import io

    import numpy as np

    from surefoot.files import write_atomically
    from surefoot.record import versions

    write_atomically(folder / "config.json", dumps(described | {"versions": versions()}, indent=1).encode())
    for name, policy in (("initial", initial), ("final", final)):
        buffer = io.BytesIO()
        np.save(buffer, policy, allow_pickle=False)
        write_atomically(folder / f"policy_{name}.npy", buffer.getvalue())
    write_atomically(folder / "exact.json", dumps(result, indent=1).encode())


class _Account:
    """Final: gathers what the updates did, and prints a line of it now and then."""

    def __init__(self, optimal_return: float, *, quiet: bool, updates: int):
        self.result: dict[str, Any] = {
            "return": [],
            "optimal_return": optimal_return,
            "kl": [],
            "gain": [],
            "surrogate_gain": [],
            "best_bound": [],
        }
        self._quiet, self._updates = quiet, updates
        self._every = -(-updates // _LINES)
        self._ended = False

    def start(self, mdp: Any, initial_return: float) -> None:
        """Told before the first update."""
        self.result["return"].append(initial_return)
        if self._quiet:
            return
        print(f"{mdp}; optimal return {self.result['optimal_return']:.6g}")
        print(
            f"{'update':>6} {'return':>12} {'gain':>11} {'surrogate':>11} {'best bound':>11}  "
            f"{'by':<15} {'KL':>9} {'TV':>7}"
        )
        print(f"{0:>6} {initial_return:>12.6g}")

    def add(self, step: Any) -> None:
        """Told after every update."""
        certificate = step.certificate
        self.result["return"].append(certificate.new_return)
        self.result["kl"].append(float(step.report.kl))
        self.result["gain"].append(certificate.gain)
        self.result["surrogate_gain"].append(certificate.surrogate_gain)
        self.result["best_bound"].append(certificate.best_bound)
        done = len(self.result["kl"])
        if self._quiet or self._ended or (step.report.accepted and done % self._every and done < self._updates):
            return
        self._ended = not step.report.accepted
        note = "  refused, as all that follow" if self._ended else "  proven" if certificate.proves_improvement else ""
        note = note or ("  vacuous" if certificate.vacuous else "")
        print(
            f"{done:>6} {certificate.new_return:>12.6g} {certificate.gain:>11.4g} {certificate.surrogate_gain:>11.4g} "
            f"{certificate.best_bound:>11.4g}  {certificate.best:<15} {float(step.report.kl):>9.3g} "
            f"{float(step.report.tv):>7.3g}{note}"
        )
