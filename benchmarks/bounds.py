"""How loose each improvement bound is, on random MDPs: penalty over what the shift of states really takes.

    python benchmarks/bounds.py

60 Garnet MDPs (8 states, 3 actions, 3 successors, standard normal rewards, random start), a random policy,
and a natural-gradient step of KL 1e-4: for each bound the median of penalty / |L - gain| and the share of
updates that it proves to improve. The same seeds for every discount; nothing is selected.
"""

import argparse

import numpy as np

import surefoot as sf
from surefoot.bounds import CATALOGUE
from surefoot.tabular import exact_batch, library, update


def measure(discount: float, models: int, radius: float, seed: int) -> dict[str, tuple[float, float]]:
    """Per bound: (median penalty ratio, share of updates proven to improve)."""
    rule = sf.exact_rule("npg", radius=radius)
    ratios: dict[str, list[float]] = {bound.id: [] for bound in CATALOGUE}
    proven: dict[str, list[bool]] = {bound.id: [] for bound in CATALOGUE}
    for index in range(models):
        mdp = library.garnet(8, 3, 3, discount, seed=seed + index)
        old = np.random.default_rng([seed, index]).dirichlet(np.ones(3), size=8)
        new, _, _ = update(rule, old, (), exact_batch(mdp, old))
        certificate = sf.certify(old, new, mdp)
        taken = abs(certificate.surrogate_gain - certificate.gain)
        for name, interval in certificate.bounds.items():
            ratios[name].append(abs(interval.penalty) / taken)
            proven[name].append(interval.lower > 0)
    return {name: (float(np.median(ratios[name])), float(np.mean(proven[name]))) for name in ratios}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--discounts", type=float, nargs="+", default=[0.9, 0.99])
    parser.add_argument("--models", type=int, default=60)
    parser.add_argument("--radius", type=float, default=1e-4)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    columns = [measure(g, arguments.models, arguments.radius, arguments.seed) for g in arguments.discounts]
    print("| id | " + " | ".join(f"g={g:g}" for g in arguments.discounts) + " |")
    print("|---|" + "---|" * len(columns))
    for bound in CATALOGUE:
        cells = (f"{ratio:.3g}; {share:.2f}" for ratio, share in (column[bound.id] for column in columns))
        print(f"| {bound.id} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
