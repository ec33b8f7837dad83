"""Levels of both ends, of traps and of the gamma fit, and rounding against the truth.

    python benchmarks/truth/ends.py [--parts lower traps gamma rounding layers] [--smollm2 FILE]

writes benchmarks/truth/results/ends.json; parts that are not named keep their figures. The layers
and the roundings are those of the files in $RMTSPEC_DATA/models, and of a SmolLM2 in GGUF (Q4_1)
where one is given, which needs the package gguf. Half an hour in all, on one thread.
"""

import argparse
import json
import math
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from scipy.linalg import eigvalsh_tridiagonal

import rmtspec
from rmtspec._records import plain, versions
from rmtspec.checkpoint import matrices_in

RESULTS = Path(__file__).parent / "results" / "ends.json"
SEED = 20410
BETAS = (0.1, 0.01)
SIDES = ((1000, 784), (300, 200), (288, 32), (2000, 40), (40, 30), (20, 16), (300, 299))
MODELS = ("mlp-784-1000-10-mnist", "resnet20-cifar10", "resnet56-cifar10")
Array = np.ndarray[Any, Any]


def wishart_eigenvalues(n: int, p: int, rng: np.random.Generator, lowest: bool = False) -> Array:
    """Return the eigenvalues of W^T W, W of white Gaussian noise, from its bidiagonal form."""
    diagonal = np.sqrt(rng.chisquare(np.arange(n, n - p, -1)))
    below = np.sqrt(rng.chisquare(np.arange(p - 1, 0, -1)))
    main = diagonal**2
    main[:-1] += below**2
    some = {"select": "i", "select_range": (0, 0)} if lowest else {}
    return np.maximum(eigvalsh_tridiagonal(main, diagonal[1:] * below, **some), 0.0)


def by_beta(levels: Array) -> dict[str, float]:
    """Return the levels by the beta that they are of."""
    return dict(zip(map(str, BETAS), levels, strict=True))


def lower() -> dict[str, Any]:
    """Level of `below_bulk` with the law known, with the law fitted, off Gauss, and its power."""
    rng = np.random.default_rng(SEED)
    known, fitted = {}, {}
    for n, p in SIDES:
        law = rmtspec.MarchenkoPastur(p / n)
        top = np.full(p - 1, n * law.bulk_edge)
        draws = 2000
        hits = np.zeros(2)
        for _ in range(draws):
            least = wishart_eigenvalues(n, p, rng, lowest=True)
            spec = rmtspec.Spectrum(np.append(least, top) / n, n)
            hits += [rmtspec.below_bulk(spec, law, beta).n_below > 0 for beta in BETAS]
        known[f"{n}x{p}"] = {"draws": draws, "level": by_beta(hits / draws)}
        draws = 200 if p > 500 else 1000
        hits = np.zeros(2)
        for _ in range(draws):
            spec = rmtspec.Spectrum(wishart_eigenvalues(n, p, rng) / n, n)
            fit = rmtspec.bema(spec)
            hits += [rmtspec.below_bulk(spec, fit, beta).n_below > 0 for beta in BETAS]
        fitted[f"{n}x{p}"] = {"draws": draws, "level": by_beta(hits / draws)}
    return {
        "law known": known, "law fitted by bema": fitted, "other noise, 300x200": _other_noise(rng),
        "power": _power(rng),
    }  # fmt: skip


def _other_noise(rng: np.random.Generator) -> dict[str, Any]:
    """Level on noise of other entries and of unequal variances, by bema and by equalizing."""
    found = {}
    for name, noise in kinds().items():
        draws, hits = 300, np.zeros((2, 2))
        for _ in range(draws):
            W = noise(300, 200, rng)
            spec, equal = rmtspec.spectrum(W), rmtspec.spectrum(equalized(W))
            fits = (spec, rmtspec.bema(spec)), (equal, rmtspec.MarchenkoPastur(equal.ratio))
            hits += [
                [rmtspec.below_bulk(*pair, beta).n_below > 0 for beta in BETAS] for pair in fits
            ]
        rows = zip(("bema", "equalized"), hits / draws, strict=True)
        found[name] = {"draws": draws} | {how: by_beta(row) for how, row in rows}
    return found


def _power(rng: np.random.Generator) -> dict[str, Any]:
    """Return the mean count where five smallest values are set to a share of the lower edge."""
    found = {}
    for share in (0.9, 0.7, 0.5, 0.2):
        counts = []
        for _ in range(100):
            U, s, Vt = np.linalg.svd(rng.standard_normal((300, 200)), full_matrices=False)
            s[-5:] = share * (math.sqrt(300) - math.sqrt(200))
            spec = rmtspec.spectrum(U * s @ Vt)
            counts.append(rmtspec.below_bulk(spec, rmtspec.bema(spec)).n_below)
        found[str(share)] = {"draws": 100, "planted": 5, "mean count": np.mean(counts)}
    return found


def kinds() -> dict[str, Callable[..., Array]]:
    """Return the kinds of noise by name, each of (n, p, rng)."""
    wishart = rmtspec.ensembles.wishart

    def profile(n: int, p: int, rng: np.random.Generator) -> Array:
        scales = np.exp(0.35 * rng.standard_normal((n, 1)) + 0.35 * rng.standard_normal(p))
        return rng.standard_normal((n, p)) * scales

    return {
        "gaussian": lambda n, p, rng: wishart(n, p, rng=rng),
        "uniform": lambda n, p, rng: wishart(n, p, entries="uniform", rng=rng),
        "t(5)": lambda n, p, rng: wishart(n, p, entries="student-t", degrees=5, rng=rng),
        "t(3)": lambda n, p, rng: wishart(n, p, entries="student-t", degrees=3, rng=rng),
        "rank-1 profile": profile,
    }


def equalized(W: Array) -> Array:
    """Return W with rows and columns scaled to mean square 1."""
    for _ in range(200):
        W = W / np.sqrt((W * W).mean(axis=1, keepdims=True))
        W = W / np.sqrt((W * W).mean(axis=0))
    return W


def traps() -> dict[str, Any]:
    """Level of `correlation_traps` by kind of noise, and how often a planted entry is named."""
    rng = np.random.default_rng(SEED + 1)
    level: dict[str, Any] = {}
    for name, noise in list(kinds().items())[:4]:
        draws, hits, listed = 300, np.zeros(2), np.zeros(2)
        for _ in range(draws):
            W = noise(300, 200, rng)
            found = [rmtspec.correlation_traps(W, beta) for beta in BETAS]
            hits += [each.n_traps > 0 for each in found]
            listed += [each.sizes.size > 0 for each in found]
        level[name] = {
            "draws": draws,
            "any trap": by_beta(hits / draws),
            "any entry beyond the limit": by_beta(listed / draws),
        }
    planted = {}
    for times in (0.8, 1.0, 1.2, 1.5, 2.0):
        right = listed_right = 0
        for _ in range(100):
            W = rng.standard_normal((300, 200))
            W[7, 11] = times * (300 * 200) ** 0.25
            found = rmtspec.correlation_traps(W)
            right += found.n_traps >= 1
            listed_right += found.rows.tolist() == [7] and found.columns.tolist() == [11]
        planted[str(times)] = {"draws": 100, "any trap": right / 100, "named": listed_right / 100}
    return {"shuffles": 5, "noise 300x200": level, "one entry of c (n p)^(1/4)": planted}


def gamma() -> dict[str, Any]:
    """Quantiles against simulation, shapes recovered, level of the p-value, time."""
    rng = np.random.default_rng(SEED + 2)
    quantiles, shapes, level = {}, {}, {}
    at = np.array([0.02, 0.1, 0.25, 0.5, 0.75, 0.9, 0.98])
    for shape in (0.5, 1.0, 2.0, 5.0, 20.0):
        for n, p in ((2000, 1568), (2000, 400)):
            from scipy.stats import gamma as gamma_law

            scales = np.sqrt(gamma_law.ppf((np.arange(p) + 0.5) / p, shape) / shape)
            draws = [
                rmtspec.spectrum(rng.standard_normal((n, p)) * scales).eigenvalues for _ in range(2)
            ]
            law = rmtspec.GammaMarchenkoPastur(p / n, shape)
            simulated = np.quantile(np.concatenate(draws), at, method="hazen")
            quantiles[f"{shape:g}, {n}x{p}"] = dict(
                zip(map(str, at), law.ppf(at) / simulated, strict=True)
            )
    for shape in (1.0, 2.0, 5.0):
        for n, p in ((1000, 784), (300, 200), (2000, 40)):
            fits, seconds = [], []
            for _ in range(40):
                W = rng.standard_normal((n, p)) * np.sqrt(rng.gamma(shape, 1 / shape, p))
                spec = rmtspec.spectrum(W)
                start = time.perf_counter()
                fits.append(rmtspec.fit_gamma(spec, draws=0).shape)
                seconds.append(time.perf_counter() - start)
            low, middle, high = np.quantile(fits, (0.05, 0.5, 0.95))
            shapes[f"{shape:g}, {n}x{p}"] = {
                "draws": 40, "shape 5 %": low, "median": middle, "95 %": high,
                "seconds": np.median(seconds),
            }  # fmt: skip
    for shape in (1.0, 5.0, math.inf):
        draws, hits = 100, 0
        for seed in range(draws):
            scale = np.sqrt(rng.gamma(shape, 1 / shape, 100)) if shape < math.inf else 1.0
            spec = rmtspec.spectrum(rng.standard_normal((200, 100)) * scale)
            hits += rmtspec.fit_gamma(spec, rng=seed).pvalue <= 0.05
        level[f"{shape:g}, 200x100"] = {"draws": draws, "rejected at 0.05": hits / draws}
    return {"quantile / simulated": quantiles, "shape recovered": shapes, "level": level}


def layers(smollm2: Path | None) -> list[dict[str, Any]]:
    """Both ends, traps and the bulk of trained layers."""
    found = []
    for name, W in weights(smollm2):
        spec = rmtspec.spectrum(W)
        fit = rmtspec.bema(spec)
        end = rmtspec.below_bulk(spec, fit)
        bulk = rmtspec.fit_gamma(spec, draws=0)
        trap = rmtspec.correlation_traps(W)
        found.append({
            "layer": name, "shape": W.shape, "spikes": fit.n_spikes, "below": end.n_below,
            "reason": end.reason, "p s": spec.p * rmtspec.fit_test(spec, fit).statistic,
            "p s, gamma": spec.p * bulk.statistic, "gamma shape": bulk.shape,
            "traps": trap.n_traps, "huge entries": trap.sizes.size,
        })  # fmt: skip
    return found


def rounding(smollm2: Path | None) -> list[dict[str, Any]]:
    """Edge of rounding noise and the count below it, against those of the errors made."""
    found = []
    for name, W in weights(smollm2):
        for kind in ("float16", "bfloat16", "float8_e4m3fn", "float8_e5m2"):
            dtype = np.dtype(kind) if kind == "float16" else np.dtype(getattr(ml_dtypes, kind))
            scale = np.abs(W).max() / 448.0 if kind == "float8_e4m3fn" else 1.0
            stored = (W / scale).astype(dtype)
            found.append(
                _rounded(f"{name}", kind, W / scale, stored.astype(float), dtype=stored.dtype)
            )
        step = np.abs(W).max(axis=1, keepdims=True) / 7.0  # 4 bits, a scale for each row
        found.append(_rounded(name, "4 bits by row", W, np.round(W / step) * step, step=step))
    return found + (_as_shipped(smollm2) if smollm2 else [])


def _as_shipped(smollm2: Path) -> list[dict[str, Any]]:
    """Count what lies below the rounding of a model that is stored in 4 bits (Q4_1)."""
    import gguf

    found = []
    for tensor in gguf.GGUFReader(smollm2).tensors:
        kind = tensor.name.split(".")[2] if tensor.name.startswith("blk.") else ""
        if tensor.tensor_type.name == "Q4_1" and kind in ("attn_q", "attn_output", "ffn_up"):
            blocks = tensor.data.reshape(len(tensor.data), -1, 20)  # step, offset, 32 codes
            step = np.ascontiguousarray(blocks[:, :, :2]).view(np.float16)[:, :, 0]
            W = gguf.dequantize(tensor.data, tensor.tensor_type)
            noise = rmtspec.rounding_noise(W, step=np.abs(step.astype(float)))
            found.append({
                "layer": f"SmolLM2 {tensor.name}", "rounded by": "Q4_1, as shipped",
                "shape": W.shape, "below": noise.n_below,
            })  # fmt: skip
    return found


def _rounded(name: str, kind: str, W: Array, stored: Array, **how: Any) -> dict[str, Any]:
    truth = float(np.linalg.norm(W - stored, 2))
    noise = rmtspec.rounding_noise(stored, **how)
    rows, columns = W.shape
    bound = math.sqrt(columns * noise.row_variances.max())
    bound += math.sqrt(rows * noise.column_variances.max())
    return {
        "layer": name, "rounded by": kind, "shape": W.shape, "edge / truth": noise.edge / truth,
        "bound / truth": bound / truth, "below": noise.n_below,
        "below, truth": int((np.linalg.svd(stored, compute_uv=False) <= truth).sum()),
        "note": noise.note,
    }  # fmt: skip


def weights(smollm2: Path | None) -> Iterator[tuple[str, Array]]:
    """Yield the matrices of the files, one in four of the residual nets."""
    folder = Path(os.environ["RMTSPEC_DATA"]) / "models"
    for model in MODELS:
        listed = [
            (name, load) for name, load in matrices_in(folder / f"{model}.safetensors")
            if min(load.shape[0], math.prod(load.shape[1:])) >= 16
        ]  # fmt: skip
        for name, load in listed[:: 1 if "mlp" in model else 4]:
            W = np.asarray(load(), dtype=np.float64)
            yield f"{model} {name}", W.reshape(len(W), -1)
    if smollm2:
        import gguf

        tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(smollm2).tensors}
        for name in ("attn_q", "attn_output", "ffn_up"):
            tensor = tensors[f"blk.10.{name}.weight"]
            yield (
                f"SmolLM2 blk.10.{name}",
                gguf.dequantize(tensor.data, tensor.tensor_type).astype(float),
            )


def main() -> None:
    """Compute the parts that are asked for and write them beside the others."""
    parser = argparse.ArgumentParser(description="Levels of both ends, traps, gamma, rounding.")
    parts = {"lower": lower, "traps": traps, "gamma": gamma}
    parser.add_argument("--parts", nargs="+", default=[*parts, "layers", "rounding"])
    parser.add_argument("--smollm2", type=Path, help="a SmolLM2 in GGUF, Q4_1")
    options = parser.parse_args()
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for part in options.parts:
        start = time.perf_counter()
        of_files = {"layers": layers, "rounding": rounding}
        found = of_files[part](options.smollm2) if part in of_files else parts[part]()
        results[part] = plain(found)
        print(part, f"{time.perf_counter() - start:.0f} s", json.dumps(results[part], indent=1))
        results["seed"], results["versions"] = SEED, versions()
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
