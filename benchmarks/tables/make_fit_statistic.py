"""Make the table of the null law of the fit statistic, ``rmtspec/laws/_fit_statistic_table.npz``.

Run ``python benchmarks/tables/make_fit_statistic.py`` (half an hour on one core). Each pair p, g is
simulated from its own fixed seed and kept in a checkpoint folder, so an interrupted run resumes
where it stopped. ``--scale 0.01`` makes a coarse table in a minute.

The spectrum of an n x p Gaussian matrix is drawn from its bidiagonal chi model (Dumitriu and
Edelman, 2002): a draw takes O(p^2), and n = p / g need not be whole. All windows and both pairings
of the BEMA fit use the same eigenvalues.
"""

import argparse
import math
import tempfile
import time
from pathlib import Path

import numba
import numpy as np
from scipy.linalg import lapack

from rmtspec.laws import fit_statistic

RATIOS = (0.001, 0.06, 0.25, 0.5, 0.75, 0.92, 1.0)
# p -> draws
DRAWS = {
    8: 40000, 11: 40000, 16: 40000, 23: 40000, 32: 40000, 45: 40000, 64: 40000, 91: 30000,
    128: 30000, 181: 24000, 256: 20000, 362: 12000, 512: 10000, 1024: 4000, 2048: 1000,
}  # fmt: skip
ALPHAS = (
    0.003, 0.007, 0.015, 0.03, 0.05, 0.075, 0.1, 0.125, 0.15, 0.175, 0.2, 0.225, 0.25, 0.275, 0.3,
    0.33, 0.36, 0.4, 0.43, 0.46, 0.48, 0.49,
)  # fmt: skip
SEED = 20240229


def windows(p: int) -> np.ndarray:
    """Return the first ranks c of the windows c..p-c to simulate: all of them if p is small."""
    last = (p - 1) // 2  # compares at least two values
    if p <= 45:
        return np.arange(1, last + 1)
    some = {math.ceil(alpha * p - 1e-9) for alpha in ALPHAS} | {1, 2, 3, last, last - 1, last - 3}
    return np.array(sorted(c for c in some if 1 <= c <= last))


@numba.njit(cache=False)
def mp_cdf(x: float, g: float) -> float:
    """Return the Marchenko-Pastur cdf at variance 1 for 0 < g <= 1, accurate to about 1e-12."""
    root = math.sqrt(g)
    low, high = (1 - root) ** 2, (1 + root) ** 2
    if x <= low:
        return 0.0
    if x >= high:
        return 1.0
    phi = 2 * math.atan2(math.sqrt(x - low), math.sqrt(high - x))
    half = math.sin(phi / 2)
    d = (1 - root) + 2 * root * half * half
    z = root * math.sin(phi) / d
    z2 = z * z
    if z2 < 0.0625:
        ratio = 0.0
        for k in range(9, -1, -1):
            ratio = 1 / (2 * k + 3) - z2 * ratio
    else:
        ratio = (z - math.atan(z)) / (z2 * z)
    sine = math.sin(phi)
    bent = 1 + (1 - g) * ratio / (d * d)
    return ((phi - sine * math.cos(phi)) + root * sine**3 / d * bent) / math.pi


@numba.njit(cache=False)
def mp_quantile(u: float, g: float) -> float:
    """Return the quantile of the same law, by bisection."""
    low, high = (1 - math.sqrt(g)) ** 2, (1 + math.sqrt(g)) ** 2
    for _ in range(60):
        middle = 0.5 * (low + high)
        if mp_cdf(middle, g) < u:
            low = middle
        else:
            high = middle
    return 0.5 * (low + high)


@numba.njit(cache=False)
def statistics(values, g, starts, quantiles, out):
    """Write p times the statistic of one spectrum for each pairing (row) and window (column)."""
    p = values.size
    for pairing in range(quantiles.shape[0]):
        q = quantiles[pairing]
        for j in range(starts.size):
            c = starts[j]
            top = 0.0
            bottom = 0.0
            for k in range(c - 1, p - c):
                top += q[k] * values[k]
                bottom += q[k] * q[k]
            variance = top / bottom
            worst = 0.0
            for k in range(c - 1, p - c):
                worst = max(worst, abs((k + 0.5) / p - mp_cdf(values[k] / variance, g)))
            out[pairing, j] = p * worst


def wishart_spectrum(rng: np.random.Generator, n: float, p: int) -> np.ndarray:
    """Draw the eigenvalues of W^T W / n for an n x p matrix of standard normals, n fractional."""
    i = np.arange(p)
    diagonal = rng.chisquare(n - i)
    below = rng.chisquare(p - 1 - i[:-1])
    off = np.sqrt(diagonal[:-1] * below) / n
    diagonal[1:] += below
    values, failed = lapack.dsterf(diagonal / n, off)
    if failed:
        raise RuntimeError(f"LAPACK sterf failed with {failed}")
    return values


def simulate(p: int, g: float, draws: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the window starts and p times the statistic, shape (2, windows, draws)."""
    starts = windows(p)
    ranks = np.arange(1, p + 1)
    quantiles = np.empty((2, p))
    for k in ranks:
        quantiles[0, k - 1] = mp_quantile((k - 0.5) / p, g)
        quantiles[1, k - 1] = mp_quantile(k / p, g)
    rng = np.random.default_rng([seed, p, round(1000 * g)])
    result = np.empty((2, starts.size, draws), dtype=np.float32)
    one = np.empty((2, starts.size))
    for i in range(draws):
        statistics(wishart_spectrum(rng, p / g, p), g, starts, quantiles, one)
        result[:, :, i] = one
    return starts, result


def simulate_all(folder: Path, scale: float) -> None:
    """Fill the checkpoint folder, small p first."""
    for p, full in DRAWS.items():
        draws = max(100, round(full * scale))
        for g in RATIOS:
            path = folder / f"p{p}_g{round(1000 * g)}.npz"
            if path.exists():
                continue
            start = time.perf_counter()
            starts, values = simulate(p, g, draws, SEED)
            part = path.with_name(path.name + ".part.npz")
            np.savez(part, p=p, g=g, starts=starts, values=values)
            part.rename(path)
            print(f"p {p} g {g}: {draws} draws, {time.perf_counter() - start:.1f} s", flush=True)


def fitted_table(folder: Path) -> np.ndarray:
    """Fit every quantile of p times the statistic by a cubic in ln p, weighted by the draws."""
    sizes = [p for p in DRAWS if p >= fit_statistic.SMALLEST]
    shape = (2, len(RATIOS), len(fit_statistic.ALPHAS), len(fit_statistic.LEVELS), len(sizes))
    quantiles = np.empty(shape)
    weights = np.empty(len(sizes))
    for size, p in enumerate(sizes):
        for ratio, g in enumerate(RATIOS):
            with np.load(folder / f"p{p}_g{round(1000 * g)}.npz") as part:
                shares, values = part["starts"] / p, part["values"]
            weights[size] = math.sqrt(values.shape[2])
            of_levels = np.quantile(values, 1 - fit_statistic.LEVELS, axis=2)
            for pairing in (0, 1):
                for level, row in enumerate(of_levels[:, pairing]):
                    smooth = np.interp(fit_statistic.ALPHAS, shares, row)
                    quantiles[pairing, ratio, :, level, size] = smooth
    powers = fit_statistic.powers(np.log(sizes))
    flat = quantiles.reshape(-1, len(sizes))
    solved = np.linalg.lstsq(powers * weights[:, None], (flat * weights).T, rcond=None)[0]
    misfit = np.abs((powers @ solved).T / flat - 1).reshape(shape)
    print(f"cubic against draws: median misfit {np.median(misfit):.1e}")
    return solved.T.reshape(*shape[:-1], powers.shape[1]).astype(np.float32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scale", type=float, default=1.0, help="share of the draws to make")
    parser.add_argument("--folder", type=Path, help="where to keep finished draws")
    options = parser.parse_args()
    name = f"rmtspec-fit-statistic-{options.scale:g}"
    folder = options.folder or Path(tempfile.gettempdir()) / name
    folder.mkdir(parents=True, exist_ok=True)
    simulate_all(folder, options.scale)
    np.savez_compressed(
        fit_statistic.TABLE, coefficients=fitted_table(folder), ratios=np.array(RATIOS)
    )
    print(f"wrote {fit_statistic.TABLE.name}, {fit_statistic.TABLE.stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
    main()
