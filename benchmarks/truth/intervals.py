"""Does the interval of the noise variance cover, and is shrinkage near its optimum?

Run ``python benchmarks/truth/intervals.py`` (ten minutes on one core). It draws matrices whose
noise and signal are known and writes ``benchmarks/truth/results/intervals.json``: the parts that
are named by ``--parts`` are replaced there, the others stay.

variance
    300 x 200, five components or none. Share of draws in which the interval of
    `rmtspec.noise_variance` at level .95 covers the mean variance of the noise entries; bias and
    standard deviation of the estimate, and the mean of its standard error, all relative. Strengths
    are in units of the detection limit, (n p)^(1/4) rms. The scales of the rank-one profile are
    those of the truth ("known"), from Sinkhorn's iteration of the residual ("estimated") or left
    out ("none").
shrinkage
    Loss ||S - W'|| of `rmtspec.split` in the norm of its shrinkage, divided by that of truncation,
    of the best singular values for the same vectors ("oracle"), and of the limit of large matrices.
    "profile" has noise of a rank-one profile, for which the shrinkage is not made; its limit is
    that of white noise of the same mean variance.
hidden
    300 x 200, components below the detection limit: share of draws in which the mean square of the
    eigenvalues (their mean set to 1), which such components raise, lies above the 95 % point of
    white Gaussian noise. Pure t(5) noise shows what else raises it.
count
    Share of draws in which [components_low, components_high] of `rmtspec.fit_noise` covers.
"""

import argparse
import json
import math
from pathlib import Path

import numpy as np
from scipy.optimize import minimize

import rmtspec
from rmtspec._records import versions

OUT = Path(__file__).parent / "results" / "intervals.json"
SHAPE = (300, 200)
STRENGTHS = {
    "five at 2": [2.0] * 5, "five at 1.5 to 4": np.linspace(1.5, 4.0, 5).tolist(),
    "five at 1.1 to 2": np.linspace(1.1, 2.0, 5).tolist(), "none": [],
    "fifty at 2 to 6": np.linspace(2.0, 6.0, 50).tolist(),
}  # fmt: skip
KINDS = {
    "Gauss": ("none",), "t(5)": ("none",), "rank-one profile": ("known", "estimated", "none"),
}  # fmt: skip
SHRINKAGE = {
    "white 1000 x 1000": ((1000, 1000), "Gauss"), "white 400 x 1000": ((400, 1000), "Gauss"),
    "profile 1000 x 1000": ((1000, 1000), "rank-one profile"),
}  # fmt: skip
SHRUNK = (1.2, 1.5, 2.0, 3.0, 6.0)
NORMS = {"frobenius": "fro", "operator": 2, "nuclear": "nuc"}


def noise(kind, shape, rng):
    """Return noise, and the variances of its rows and columns (log-normal, sigma .7 each)."""
    x, y = np.ones(shape[0]), np.ones(shape[1])
    if kind == "t(5)":
        return rng.standard_t(5, shape) * math.sqrt(3 / 5), x, y
    if kind == "rank-one profile":
        x, y = (np.exp(0.7 * rng.standard_normal(side)) for side in shape)
    return rng.standard_normal(shape) * np.sqrt(np.outer(x, y)), x, y


def signal(strengths, shape, rms, rng):
    """Return the factors U S and V of a signal with strengths in units of the detection limit."""
    left, right = (np.linalg.qr(rng.standard_normal((side, len(strengths))))[0] for side in shape)
    return left * (np.array(strengths) * math.prod(shape) ** 0.25 * rms), right


def sinkhorn(squares):
    """Return x and y such that squares / (x y^T) has unit row and column means."""
    y = np.ones(squares.shape[1])
    for _ in range(200):
        x = squares @ (1.0 / y) / len(y)
        before, y = y, (1.0 / x) @ squares / len(x)
        if np.abs(y / before - 1.0).max() < 1e-10:
            break
    return x, y


def estimated_scales(W, k, rounds=6):
    """Return the scales of rows and columns from the residual of k components, k known."""
    x, y = sinkhorn(np.square(W))
    for _ in range(rounds):
        Z = W / np.sqrt(np.outer(x, y))
        U, s, Vt = np.linalg.svd(Z, full_matrices=False)
        rows = np.maximum(1.0 - np.square(U[:, :k]).sum(1), 0.05)
        columns = np.maximum(1.0 - np.square(Vt[:k]).sum(0), 0.05)
        residual = np.square(Z - (U[:, :k] * s[:k]) @ Vt[:k]) / np.outer(rows, columns)
        more = sinkhorn(residual)
        x, y = x * more[0], y * more[1]
    return np.sqrt(x), np.sqrt(y)


def variance(draws, seed):
    """Return one row for each kind of noise, signal and source of the scales."""
    rows = []
    for kind, sources in KINDS.items():
        for label, strengths in STRENGTHS.items():
            rng = np.random.default_rng([seed, len(rows)])
            results = {source: [] for source in sources}
            for _ in range(draws):
                N, x, y = noise(kind, SHAPE, rng)
                true = float(x.mean() * y.mean())
                outer, right = signal(strengths, SHAPE, math.sqrt(true), rng)
                W = N + outer @ right.T
                for source in sources:
                    scales = (None, None)
                    if source != "none":
                        known = np.sqrt(x), np.sqrt(y)
                        exact = source == "known"
                        scales = known if exact else estimated_scales(W, len(strengths))
                    fit = rmtspec.noise_variance(
                        W, len(strengths), row_scales=scales[0], column_scales=scales[1]
                    )
                    covers = fit.low <= true <= fit.high
                    error = fit.standard_error / true
                    results[source].append([covers, fit.variance / true - 1.0, error])
            for source, values in results.items():
                covers, gaps, errors = np.array(values, dtype=float).T
                rows.append({
                    "noise": kind, "components": label, "scales": source,
                    "covers": round(float(covers.mean()), 4), "bias": round(float(gaps.mean()), 6),
                    "sd": round(float(gaps.std()), 6), "se": round(float(errors.mean()), 6),
                })  # fmt: skip
                print(rows[-1], flush=True)
    return rows


def core(outer, right, parts):
    """Return the difference of two products in the span of their factors, and the two spans."""
    left = np.linalg.qr(np.hstack([outer, parts.outer]))[0]
    other = np.linalg.qr(np.hstack([right, parts.inner.T]))[0]
    return (left.T @ outer) @ (other.T @ right).T, left.T @ parts.outer, parts.inner @ other


def oracle(true, outer, inner, norm):
    """Return the least loss over all singular values for the vectors in the factors."""
    u, v = outer / np.linalg.norm(outer, axis=0), inner / np.linalg.norm(inner, axis=1)[:, None]
    start = np.einsum("ij,ik,jk->k", true, u, v.T)

    def loss(values):
        return np.linalg.norm(true - (u * values) @ v, norm)

    if norm == "fro":
        return loss(start)
    return min(minimize(loss, start, method="Powell", options={"xtol": 1e-4}).fun, loss(start))


def limit(strengths, shape, norm):
    """Return the loss of the optimal shrinkage in the limit, in units of sqrt(n variance)."""
    ratio = min(shape) / max(shape)
    losses = []
    for theta in np.array(strengths) * ratio**0.25:
        c = math.sqrt((theta**4 - ratio) / (theta**4 + theta**2))
        d = math.sqrt((theta**4 - ratio) / (theta**4 + ratio * theta**2))
        pair = np.outer([c, math.sqrt(1 - c**2)], [d, math.sqrt(1 - d**2)])
        best = {
            "fro": theta * c * d,
            2: theta * min(c, d) / max(c, d),
            "nuc": theta * (c * d - pair[1, 1]),
        }[norm]
        gap = np.diag([theta, 0.0]) - max(best, 0.0) * pair
        losses.append(np.linalg.norm(gap, norm))
    return {"fro": np.linalg.norm(losses), 2: max(losses), "nuc": sum(losses)}[norm]


def shrinkage(draws, seed):
    """Return one row for each shape, noise and norm."""
    rows = []
    for number, (label, (shape, kind)) in enumerate(SHRINKAGE.items()):
        rng = np.random.default_rng([seed, 100 + number])
        results = {norm: [] for norm in NORMS}
        for _ in range(draws):
            N, x, y = noise(kind, shape, rng)
            rms = math.sqrt(x.mean() * y.mean())
            outer, right = signal(SHRUNK, shape, rms, rng)
            W = N + outer @ right.T
            plain = rmtspec.split(W, len(SHRUNK))
            true, ours, inner = core(outer, right, plain)
            for name, norm in NORMS.items():
                parts = rmtspec.split(W, len(SHRUNK), shrink=name)
                loss = np.linalg.norm(outer @ right.T - parts.outer @ parts.inner, norm)
                truncated = np.linalg.norm(true - ours @ inner, norm)
                scale = math.sqrt(max(shape)) * rms
                best = oracle(true, ours, inner, norm)
                results[name].append(loss / np.array([
                    truncated, best, limit(SHRUNK, shape, norm) * scale
                ]))  # fmt: skip
        for name, values in results.items():
            row = {"matrix": label, "norm": name}
            columns = np.transpose(values)
            for what, column in zip(("truncation", "oracle", "limit"), columns, strict=True):
                row[f"to_{what}"] = {"mean": round(column.mean(), 4), "max": round(column.max(), 4)}
            rows.append(row)
            print(rows[-1], flush=True)
    return rows


def hidden(draws, seed):
    """Return how often components below the limit show in the second moment of the spectrum."""
    rng = np.random.default_rng([seed, 300])

    def moment(kind, strengths):
        N, _, _ = noise(kind, SHAPE, rng)
        outer, right = signal(strengths, SHAPE, 1.0, rng)
        values = rmtspec.spectrum(N + outer @ right.T).eigenvalues
        return np.mean(np.square(values / values.mean()))

    cases = [
        ("Gauss", []), ("Gauss", [0.5] * 5), ("Gauss", [0.8] * 5), ("Gauss", [0.8] * 20),
        ("t(5)", []),
    ]  # fmt: skip
    point = np.quantile([moment("Gauss", []) for _ in range(10 * draws)], 0.95)
    rows = []
    for kind, strengths in cases:
        above = float(np.mean([moment(kind, strengths) > point for _ in range(draws)]))
        label = f"{len(strengths)} at {strengths[0]}" if strengths else "none"
        rows.append({"noise": kind, "components": label, "above": round(above, 4)})
        print(rows[-1], flush=True)
    return rows


def count(draws, seed):
    """Return how often the interval of the count covers, one row for each noise and signal."""
    rows = []
    signals = {**STRENGTHS, "five at 1.02 to 1.6": np.linspace(1.02, 1.6, 5).tolist()}
    for kind in KINDS:
        for label, strengths in signals.items():
            rng = np.random.default_rng([seed, 200 + len(rows)])
            covers = 0
            for _ in range(draws):
                N, x, y = noise(kind, SHAPE, rng)
                outer, right = signal(strengths, SHAPE, math.sqrt(x.mean() * y.mean()), rng)
                fit = rmtspec.fit_noise(N + outer @ right.T)
                covers += fit.components_low <= len(strengths) <= fit.components_high
            rows.append({"noise": kind, "components": label, "covers": round(covers / draws, 4)})
            print(rows[-1], flush=True)
    return rows


PARTS = {"variance": variance, "shrinkage": shrinkage, "hidden": hidden, "count": count}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--draws", type=int, default=300, help="shrinkage makes a tenth of them")
    parser.add_argument("--seed", type=int, default=12)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    results = json.loads(options.out.read_text("utf-8")) if options.out.exists() else {}
    for part in options.parts:
        draws = max(1, options.draws // 10) if part == "shrinkage" else options.draws
        rows = PARTS[part](draws, options.seed)
        made = {"draws": draws, "seed": options.seed, "level": 0.95, "versions": versions()}
        results[part] = {**made, "rows": rows}
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(results, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
