"""Counts of the peers and of rmtspec's rules on matrices whose truth is known, and on one layer.

    python benchmarks/truth/peers_table.py [--only NAME ...] [--draws 300] [--out FILE]

prints a table and writes benchmarks/truth/results/peers.json: counts, seconds, seeds, versions. The
peers' packages are in requirements/bench.txt; a count that cannot be made is null with the reason.
The layer of the MNIST network is read from the folder of RMTSPEC_DATA. The second part is the level
of the rules that rmtspec has for comparison: the share of pure noise matrices in which they count
anything.
"""

import argparse
import importlib.util
import json
import os
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
from peers import PEERS

import rmtspec
from rmtspec._records import plain, versions
from rmtspec.ensembles import spiked, wishart

HERE = Path(__file__).resolve().parent
LAYER = "models/mlp-784-1000-10-mnist.safetensors"
PACKAGES = ("weightwatcher", "screenot", "dyson-equalizer", "brine-equalizer", "entroptics")
#: Rules of rmtspec that count components; the others are shares.
RULES = ("bema", "noise", "gavish-donoho", "screenot", "parallel", "bcv")
SEED = 0
BETA = 0.1


def scaled(W, sigma=0.7):
    """Return the matrix with rows and columns multiplied by log-normal factors."""
    rng = np.random.default_rng(SEED + 1)
    rows, columns = (np.exp(sigma * rng.standard_normal(side)) for side in W.shape)
    return W * rows[:, None] * columns


def layer():
    """Return the largest matrix of the MNIST network, or None if RMTSPEC_DATA does not hold it."""
    file = Path(os.environ.get("RMTSPEC_DATA", ".")) / LAYER
    if not file.is_file():
        return None
    matrices = rmtspec.checkpoint.matrices_in(file).matrices.values()
    return np.asarray(max((load() for load in matrices), key=lambda W: W.size), dtype=float)


def matrices():
    """Yield (name, planted count or None, matrix)."""
    forty = spiked(1000, 784, np.linspace(3, 10, 40), rng=SEED)
    yield "Gaussian 300 x 200", 0, wishart(300, 200, rng=SEED)
    noise = np.random.default_rng(SEED).standard_t(3, (300, 200))
    yield "Student t(3) 300 x 200", 0, noise
    yield "40 planted, 1000 x 784", 40, forty
    yield "40 planted, rows and columns scaled", 40, scaled(forty)
    for count in (100, 350):
        W = spiked(1000, 1000, np.linspace(3, 10, count), rng=SEED)
        yield f"{count} planted, 1000 x 1000", count, W
    yield "MNIST layer, 1000 x 784", None, layer()


def counted(count, W):
    """Return the count of a matrix and the seconds it took, or why there is none."""
    start = time.perf_counter()
    try:
        number, reason = int(count(W)), ""
    except Exception as error:  # a peer may raise anything
        number, reason = None, f"{type(error).__name__}: {error}"
    seconds = round(time.perf_counter() - start, 3)
    return {"count": number, "seconds": seconds, "reason": reason}


def by_rule(rule):
    return lambda W: rmtspec.choose_rank(W, rule=rule, beta=BETA, rng=SEED)


def counters():
    """Return the counters by name, ours first."""
    ours = {f"rmtspec {rule}": by_rule(rule) for rule in RULES}
    if importlib.util.find_spec("rmtspec.matrix.noise") is None:
        del ours["rmtspec noise"]
    return ours | {name: peer.count for name, peer in PEERS.items()}


def levels(draws):
    """Return for each rule the share of noise matrices in which it counts anything."""
    kinds = {"one variance": 0.0, "row and column variances log-normal, sigma 0.7": 0.35}
    shares = {}
    for kind, sigma in kinds.items():  # scales have half the sigma of the variances
        hits = dict.fromkeys([r for r in RULES if f"rmtspec {r}" in counters()], 0)
        for seed in range(draws):
            rng = np.random.default_rng([SEED, seed])
            W = rng.standard_normal((300, 200))
            W *= np.exp(sigma * rng.standard_normal(300))[:, None]
            W *= np.exp(sigma * rng.standard_normal(200))
            for rule in hits:
                hits[rule] += rmtspec.choose_rank(W, rule=rule, beta=BETA, rng=seed).rank > 0
        shares[kind] = {rule: hit / draws for rule, hit in hits.items()}
        print(f"level, {kind}: {shares[kind]}", flush=True)
    return {"size": [300, 200], "draws": draws, "beta": BETA, "shares": shares}


def package_versions():
    found = versions()
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def main():
    """Print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", help="names of counters")
    parser.add_argument("--draws", type=int, default=300, help="noise matrices of each kind")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "peers.json")
    given = parser.parse_args()
    chosen = {n: c for n, c in counters().items() if not given.only or n in given.only}
    rows = []
    for name, planted, W in matrices():
        if W is None:
            print(f"{name}: {LAYER} is not in the folder of RMTSPEC_DATA")
            continue
        counts = {who: counted(count, W) for who, count in chosen.items()}
        rows.append({"matrix": name, "planted": planted, "shape": list(W.shape), "counts": counts})
        said = {who: one["count"] for who, one in counts.items()}
        print(f"{name}, planted {planted}: {said}", flush=True)
    content = {
        "seed": SEED,
        "beta": BETA,
        "sources": {name: peer.source for name, peer in PEERS.items()},
        "rows": rows,
        "levels": levels(given.draws),
        "versions": package_versions(),
    }
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(plain(content), indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
