"""False alarms: what each model counts on matrices that have no component.

level
    Share of draws of pure noise with any component, by model, level and kind of noise. For "mp"
    also the share in which its fit is accepted, and in which a false component passes the screen.
flips
    300 x 200: how often the flip test, and the fit test of the law, reject the bulk of pure noise
    at .05, and the verdicts of "auto".
correlated
    What "auto" counts where entries are not independent: autoregressive along the rows.
"""

import math
from collections import Counter

import numpy as np
from noise_kinds import KINDS
from records import Record, Row, fill, generator, mean_of
from scipy.signal import lfilter

import rmtspec

MODELS = ("mp", "equalized", "signflip", "auto")
BETAS = (0.1, 0.01)
#: Draws by size; 300 x 200 is the size of the guarantee.
SIZES = {
    (300, 200): 600, (16, 16): 300, (64, 64): 300, (288, 32): 300, (2000, 40): 100, (1000, 784): 30,
}  # fmt: skip


def level(record: Record, draws: int | None, n_jobs: int) -> None:
    """Fill the record of false alarms."""
    cells = [
        {"kind": kind, "n": n, "p": p, "draws": draws or usual}
        for (n, p), usual in SIZES.items()
        for kind in KINDS
    ]
    fill(record, cells, _one_level, _shares, n_jobs)


def _one_level(cell: Row, draw: int) -> Row:
    noise = KINDS[cell["kind"]](cell["n"], cell["p"], generator(cell, draw))
    seen: Row = {}
    for beta in BETAS:
        for model in MODELS:
            fit = rmtspec.fit_noise(noise, model=model, beta=beta, rng=draw)
            lost = math.isnan(fit.n_components)
            seen[f"{model} {beta:g}"] = lost or fit.n_components > 0
            if model == "mp" and beta == BETAS[0]:
                alarm, screened = seen["mp 0.1"], fit.verdict == "cannot tell"
                seen["mp accepted"] = fit.law_pvalue >= 0.05
                seen["mp screened"] = screened
                seen["mp 0.1 and accepted"] = alarm and fit.law_pvalue >= 0.05
                seen["mp 0.1 and not screened"] = alarm and not screened
    return seen


def _shares(found: list[Row]) -> Row:
    return {key: mean_of(found, key) for key in found[0]}


def flips(record: Record, draws: int | None, n_jobs: int) -> None:
    """Fill the record of the test of the bulk."""
    cells = [{"kind": kind, "n": 300, "p": 200, "draws": draws or 200} for kind in KINDS]
    fill(record, cells, _one_flip, _verdicts, n_jobs)


def _one_flip(cell: Row, draw: int) -> Row:
    noise = KINDS[cell["kind"]](cell["n"], cell["p"], generator(cell, draw))
    tested = rmtspec.fit_noise(noise, model="signflip", rng=draw)
    chosen = rmtspec.fit_noise(noise, model="auto", rng=draw)
    return {
        "flip test rejects": tested.bulk_pvalue <= 0.05,
        "and distance above .008": tested.bulk_pvalue <= 0.05 and tested.bulk_ks > 0.008,
        "distance": tested.bulk_ks,
        "law rejected": tested.law_pvalue < 0.05,
        "verdict": str(chosen.verdict),
        "model": chosen.model,
    }


def _verdicts(found: list[Row]) -> Row:
    numbers = [key for key in found[0] if key not in ("verdict", "model")]
    words = {key: dict(Counter(row[key] for row in found)) for key in ("verdict", "model")}
    return {**{key: mean_of(found, key) for key in numbers}, **words}


def correlated(record: Record, draws: int | None, n_jobs: int) -> None:
    """Fill the record of counts on correlated noise."""
    cells = [
        {"correlation": each, "n": 300, "p": 200, "draws": draws or 40} for each in (0.1, 0.3, 0.6)
    ]
    fill(record, cells, _one_correlated, _counts, n_jobs)


def _one_correlated(cell: Row, draw: int) -> Row:
    rng, step = generator(cell, draw), cell["correlation"]
    shocks = rng.standard_normal((cell["n"], cell["p"] + 100))
    noise = lfilter([1.0], [1.0, -step], shocks, axis=1)[:, 100:]
    fit = rmtspec.fit_noise(noise, rng=draw)
    return {"components": fit.n_components, "verdict": str(fit.verdict)}


def _counts(found: list[Row]) -> Row:
    counts = [row["components"] for row in found]
    return {
        "least": min(counts), "median": float(np.median(counts)), "most": max(counts),
        "verdict": dict(Counter(row["verdict"] for row in found)),
    }  # fmt: skip
