"""The curves of one matrix as numbers for the page, thinned to what can be seen."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rmtspec._checks import Float64Array
from rmtspec.laws.marchenko_pastur import MarchenkoPastur
from rmtspec.matrix.spectrum import Spectrum
from rmtspec.matrix.spectrum_estimate import SpectrumEstimate
from rmtspec.matrix.window import Window
from rmtspec.plot.axes import bulk_grid, far_from_zero
from rmtspec.report.matrix_report import MatrixReport
from rmtspec.terms import Verdict

#: Points of a curve; a line of 8,000 looks the same.
_POINTS = 100
_LAW_POINTS = 64
_BARS, _ESTIMATED_BARS = 60, 40
#: Spikes that are drawn one by one; of more, an even choice with both ends.
_SPIKES = 100
_DIGITS = 4


def curves_of(matrix: MatrixReport) -> list[dict[str, Any]]:
    """Return what to draw of a matrix: one entry for each spectrum, that which decides first.

    With a noise model other than "mp" the spectrum of the equalized matrix decides, with its law
    and the sign flips of its bulk; that of the matrix itself, with one variance, follows.
    """
    plain = _of_fit(matrix)
    equalized = _of_noise(matrix)
    return [plain] if equalized is None else [equalized, plain]


def estimated_curves(estimate: SpectrumEstimate) -> dict[str, Any]:
    """Return what to draw of a matrix whose spectrum was estimated."""
    law, k, p = estimate.law, estimate.n_spikes, estimate.p
    low, high = _view(law, estimate.threshold)
    heights = np.maximum(estimate.density(np.linspace(low, high, _ESTIMATED_BARS + 1))[0], 0.0)
    top = max(float(heights.max()), float(((p - k) / p * law.pdf(bulk_grid(law))[64:]).max()))
    span = f"{estimate.n_spikes_low} to {estimate.n_spikes_high}"
    return {
        "p": p, "view": _short([low, high]), "bars": _short(heights), "top": _number(top),
        "law": _law(law, (p - k) / p, estimate.threshold), "title": "Estimated spectrum",
        "accepted": False, "estimated": True,
        "says": f"Estimated, not tested: {k} spikes, {span} within the errors; edge "
        f"{estimate.bulk_edge:.4g} ± {estimate.bulk_edge_error:.2g}.",
        "n_spikes": k, "spikes": _short(estimate.spikes[_evenly(k, _SPIKES)]),
    }  # fmt: skip


def _of_fit(matrix: MatrixReport) -> dict[str, Any]:
    fit, test = matrix.fit, matrix.test
    says = f"No fit: {fit.reason}."
    if fit.law is not None:
        word = "fits" if test.accepted else "does not fit"
        says = f"The law of noise of one variance {word}: p-value {test.pvalue:.3g}."
    spikes = 0 if fit.law is None else int(fit.n_spikes)
    curves = _histogram(matrix.spectrum, fit.law, fit.threshold, fit.n_removed)
    curves |= {"title": "Spectrum", "accepted": test.accepted, "says": says}
    curves |= _ranked(matrix.spectrum.eigenvalues, spikes)
    if matrix.noise.model == "mp" or matrix.noise.law is None:  # this spectrum decides
        curves |= _shares(matrix.spectrum.eigenvalues[: fit.p - fit.n_removed], fit.law)
        if fit.law is not None:
            curves["gap"] = _gap(matrix.spectrum.eigenvalues, fit.window, fit.law)
    return curves


def _of_noise(matrix: MatrixReport) -> dict[str, Any] | None:
    noise = matrix.noise
    if noise.model == "mp" or noise.law is None:
        return None
    count, values = int(noise.n_components), noise.spectrum.eigenvalues
    curves = _histogram(noise.spectrum, noise.law, noise.threshold, count)
    curves |= _ranked(values, count) | _shares(values[: values.size - count], noise.law)
    if noise.flip_quantiles is not None:
        curves["flips"] = _quantiles(noise.flip_quantiles)
    accepted = noise.verdict == Verdict.NOISE_LIKE  # the words of the verdict stand above
    return curves | {"title": "Spectrum of the equalized matrix", "accepted": accepted, "says": ""}


def _histogram(
    spectrum: Spectrum, law: MarchenkoPastur | None, threshold: float, removed: int
) -> dict[str, Any]:
    """Return the bars in view, and the law with its edges where there is one."""
    values, p = spectrum.eigenvalues, spectrum.p
    low, high = 0.0, float(values[-1]) or 1.0
    if law is not None:
        low, high = _view(law, threshold)
    inside = int(np.count_nonzero((values >= low) & (values <= high)))
    edges = np.linspace(low, high, int(np.clip(1.5 * inside**0.5, 10, _BARS)) + 1)
    heights = np.histogram(values, edges)[0] / (p * np.diff(edges))
    found: dict[str, Any] = {"p": p, "view": _short([low, high]), "bars": _short(heights)}
    top = float(heights.max(initial=0.0))
    if law is not None:
        share = (p - removed) / p
        found["law"] = _law(law, share, threshold)
        # At ratio 1 the density has a pole at 0: its mean over each bar sets the height.
        top = max(top, share * float((np.diff(law.cdf(edges)) / np.diff(edges)).max()))
    return found | {"top": _number(top)}


def _view(law: MarchenkoPastur, threshold: float) -> tuple[float, float]:
    """Return the part of the axis where bars are drawn."""
    low = law.lower_edge - 0.25 * (threshold - law.lower_edge) if far_from_zero(law) else 0.0
    return low, threshold + 0.25 * (threshold - low)


def _law(law: MarchenkoPastur, share: float, threshold: float) -> dict[str, Any]:
    """Return the curves of a law times a share, its edges and the threshold."""
    x = bulk_grid(law)[:: 512 // _LAW_POINTS]
    return {
        "x": _short(x), "density": _short(share * law.pdf(x)), "share": _short(law.cdf(x)),
        "lower": _number(law.lower_edge), "upper": _number(law.bulk_edge),
        "threshold": _number(threshold),
    }  # fmt: skip


def _ranked(values: Float64Array, spikes: int) -> dict[str, Any]:
    """Return the eigenvalues by rank, the largest first, and those of them that are spikes."""
    p = values.size
    logs = np.geomspace(1, p, min(p, _POINTS)).astype(np.int64) - 1
    shown = np.unique(np.concatenate([_evenly(spikes, _SPIKES), logs]))
    largest = values[::-1]
    return {
        "scree": {"rank": (shown + 1).tolist(), "value": _short(largest[shown])},
        "n_spikes": spikes,
        "spikes": _short(largest[_evenly(spikes, _SPIKES)]),
    }


def _shares(bulk: Float64Array, law: MarchenkoPastur | None) -> dict[str, Any]:
    return {"bulk": _quantiles(bulk)} if bulk.size and law is not None else {}


def _quantiles(values: Float64Array) -> list[float]:
    """Return the quantiles of ascending values at (i + 1/2) / number for i = 0, 1, ..."""
    number = min(values.size, _POINTS)
    levels = (np.arange(number) + 0.5) / number
    return _short(np.quantile(values, levels, method="hazen"))


def _gap(values: Float64Array, window: Window, law: MarchenkoPastur) -> dict[str, float]:
    """Return where the distribution function of the bulk is farthest from that of the law."""
    compared, levels = window.of(values), window.levels("midpoint")
    shares = law.cdf(compared)
    k = int(np.argmax(np.abs(shares - levels)))
    return {"x": _number(compared[k]), "bulk": _number(levels[k]), "law": _number(shares[k])}


def _evenly(size: int, most: int) -> NDArray[np.int64]:
    """Return at most `most` of the indices 0 to size - 1, with both ends."""
    return np.unique(np.linspace(0, size - 1, min(size, most)).astype(np.int64))


def _short(values: ArrayLike) -> list[float]:
    return [_number(value) for value in np.asarray(values, dtype=np.float64).tolist()]


def _number(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")
