"""Power: components of known number and strength, planted in noise of several kinds.

power
    300 x 200: share of draws with exactly the planted count, and with more; mean count; share in
    which [components_low, components_high] covers the truth. Strengths are in units of the
    detection limit of a white matrix, (n p)^(1/4) rms.
exact
    `rmtspec.ensembles.spiked` with strengths from 3 to 10, up to 350 components, as it is and with
    rows and columns scaled: how far each model is from the truth at level .01.
"""

import numpy as np
from level import BETAS, MODELS
from noise_kinds import KINDS, planted
from records import Record, Row, fill, generator, mean_of

import rmtspec

NOISES = ("Gaussian", "rank-one profile", "blocks", "Student t(3)")
SIGNALS = {
    "five at 2": [2.0] * 5,
    "twenty at 1.5 to 4": np.linspace(1.5, 4.0, 20).tolist(),
    **{f"five at {s:g}": [s] * 5 for s in (1.5, 1.3, 1.0, 1.15, 3.0, 4.0)},
}
DRAWS = {"five at 2": 150, "twenty at 1.5 to 4": 150}
PLANTED = ((1000, 784, 40), (1000, 1000, 100), (1000, 1000, 200), (1000, 1000, 350))


def power(record: Record, draws: int | None, n_jobs: int) -> None:
    """Fill the record of planted components."""
    cells = [
        {"kind": kind, "signal": signal, "n": 300, "p": 200,
         "draws": draws or DRAWS.get(signal, 100)}
        for signal in SIGNALS
        for kind in NOISES
    ]  # fmt: skip
    fill(record, cells, _one_count, _summary, n_jobs)


def _one_count(cell: Row, draw: int) -> Row:
    rng, strengths = generator(cell, draw), np.array(SIGNALS[cell["signal"]])
    W = planted(KINDS[cell["kind"]](cell["n"], cell["p"], rng), strengths, rng)
    seen: Row = {"truth": strengths.size}
    for beta in BETAS:
        for model in MODELS:
            fit = rmtspec.fit_noise(W, model=model, beta=beta, rng=draw)
            seen[f"{model} {beta:g}"] = fit.n_components
            if beta == BETAS[0]:
                low, high = fit.components_low, fit.components_high
                seen[f"{model} covers"] = low <= strengths.size <= high
    return seen


def _summary(found: list[Row]) -> Row:
    truth = found[0]["truth"]
    row: Row = {"truth": truth}
    for key in found[0]:
        if key == "truth":
            continue
        if key.endswith("covers"):
            row[key] = mean_of(found, key)
            continue
        counts = np.array([each[key] for each in found], dtype=float)
        row[key] = {
            "exact": round(float(np.mean(counts == truth)), 4),
            "too many": round(float(np.mean(counts > truth)), 4),
            "mean": round(float(np.nanmean(counts)), 3),
        }
    return row


def exact(record: Record, draws: int | None, n_jobs: int) -> None:
    """Fill the record of many strong components."""
    cells = [
        {"n": n, "p": p, "truth": truth, "scaled": scaled, "draws": draws or 2}
        for n, p, truth in PLANTED
        for scaled in (False, True)
    ]
    fill(record, cells, _one_exact, lambda rows: {k: [r[k] for r in rows] for k in rows[0]}, n_jobs)


def _one_exact(cell: Row, draw: int) -> Row:
    rng = generator({**cell, "scaled": False}, draw)
    n, p, truth = cell["n"], cell["p"], cell["truth"]
    W = rmtspec.ensembles.spiked(n, p, np.linspace(3.0, 10.0, truth), rng=rng)
    if cell["scaled"]:
        W = W * np.exp(rng.normal(size=(n, 1))) * np.exp(rng.normal(size=(1, p)))
    fits = {m: rmtspec.fit_noise(W, model=m, beta=0.01, rng=draw) for m in MODELS}
    return {model: fit.n_components for model, fit in fits.items()}
