"""`surefoot certify`."""

from __future__ import annotations

import argparse
from typing import Any

from surefoot.cli.exact import add_model_options


def add(commands: Any) -> None:
    """The command and its options."""
    parser = commands.add_parser(
        "certify",
        help="what a change of policy gains in a finite MDP, and what can be proven of it",
        description="The true gain of a change of policy, its surrogate gain, every improvement bound, and how far "
        "the law of states moves.",
        epilog="MDP is what `surefoot exact` takes. OLD and NEW are .npy arrays of action probabilities, [S, A], or "
        "[T, S, A] with a horizon.",
        allow_abbrev=False,
    )
    parser.add_argument("mdp", metavar="MDP", help="the finite MDP")
    parser.add_argument("--old", required=True, metavar="OLD", help="the policy before, a .npy file")
    parser.add_argument("--new", required=True, metavar="NEW", help="the policy after, a .npy file")
    add_model_options(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object on standard output and nothing else")
    parser.set_defaults(command=run)


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Certify, and tell the result."""
    from surefoot.certificate import certify
    from surefoot.tabular.files import read_policy
    from surefoot.tabular.toy_text import load

    mdp = load(arguments.mdp, discount=arguments.discount, horizon=arguments.horizon)
    old, new = read_policy(arguments.old, mdp, "OLD"), read_policy(arguments.new, mdp, "NEW")
    certificate = certify(old, new, mdp)
    if not arguments.json:
        _print(mdp, certificate)
    return certificate.as_dict()


def _print(mdp: Any, certificate: Any) -> None:
    print(f"{mdp}; every number is {certificate.kind}")
    print(f"return            {certificate.old_return:.6g} -> {certificate.new_return:.6g}")
    print(f"gain              {certificate.gain:.6g}")
    print(f"surrogate gain    {certificate.surrogate_gain:.6g}")
    print(f"identity residual {certificate.identity_residual:.2g}  (gain - <d', Abar> / (1 - g))")
    print(f"KL(old || new)    mean {certificate.mean_kl:.4g}, largest {certificate.max_kl:.4g} nats")
    print(f"\n{'bound':<16} {'penalty':>12} {'lower':>12} {'upper':>12}")
    for name, interval in certificate.bounds.items():
        note = "" if interval.valid else "  does not apply: rewards below 0"
        note += "  best without the new policy's states" if name == certificate.best else ""
        print(f"{name:<16} {interval.penalty:>12.5g} {interval.lower:>12.5g} {interval.upper:>12.5g}{note}")
    verdict = (
        "proves that the return rises" if certificate.proves_improvement else "does not prove that the return rises"
    )
    vacuous = "; it is vacuous, it excludes nothing that bounded rewards do not" if certificate.vacuous else ""
    print(f"\nThe best bound, {certificate.best}, {verdict}{vacuous}.")
    shift = certificate.state_shift
    print(f"\n{'t':>3} {'TV of states':>13} {'overlap':>9} {'mean-tv':>9} {'geometric':>10} {'chain-kl':>9}")
    for t in range(len(shift.tv)):
        print(
            f"{t:>3} {shift.tv[t]:>13.5f} {shift.overlap[t]:>9.5f} {shift.mean_tv[t]:>9.5f} "
            f"{shift.geometric[t]:>10.5f} {shift.chain_kl[t]:>9.5f}"
        )
