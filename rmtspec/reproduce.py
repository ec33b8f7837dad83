"""The paper's figures on BEMA, drawn again: Example 3.3 and Figures 2, 3a and 3b.

The numbers of each figure are computed twice: with the settings that agree with the paper's
numbers (quantiles at k / p, no refinement), and with the defaults of this library. The conditions
are written next to the picture. `rmtspec reproduce` is the command for this module.
"""

import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rmtspec import _checks, ensembles
from rmtspec._files.writing import PathLike, output_folder, write_atomically
from rmtspec._records import plain, versions
from rmtspec.matrix.bema import bema
from rmtspec.matrix.fit_test import fit_test
from rmtspec.matrix.spectrum import Spectrum, spectrum
from rmtspec.plot.axes import png
from rmtspec.plot.esd import plot_esd

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FIGURES = ("example-3.3", "fig-2", "fig-3a", "fig-3b")

#: The settings that agree with the paper's numbers, and the defaults of this library.
SETTINGS: dict[str, dict[str, Any]] = {
    "as published": {"quantiles": "paper", "refine": False},
    "library defaults": {"quantiles": "midpoint", "refine": True},
}
#: The paper does not state N; the slope of its Figure 3b implies about 330.
_SIZES = (330, 1000)
_ALPHA, _BETA = 0.25, 0.1
_COLOURS = ("#0077bb", "#ee7733", "#009988")
_MARKERS = ("o", "s", "^")


@dataclass(frozen=True, slots=True)
class _Sweep:
    """Figure 3a or 3b: the parameter that varies, its values, and the fixed parameter."""

    moving: str
    values: tuple[float, ...]
    fixed: dict[str, float]

    def at(self, value: float) -> dict[str, Any]:
        """Return the options of `bema` with the varying parameter at `value`."""
        return {self.moving: value, **self.fixed}


_SWEEPS = {
    "fig-3a": _Sweep("alpha", tuple(np.linspace(0.05, 0.45, 17).round(3)), {"beta": 0.5}),
    "fig-3b": _Sweep("beta", tuple(np.linspace(0.05, 0.95, 19).round(3)), {"alpha": _ALPHA}),
}


def reproduce_figure(
    figure: str, *, n: int = 1000, out: PathLike, seed: int = 0, seeds: int | None = None
) -> list[Path]:
    """Draw a figure of the paper and write it, with all its numbers, into a folder.

    Parameters
    ----------
    figure : {"example-3.3", "fig-2", "fig-3a", "fig-3b"}
        "example-3.3" and "fig-2" are the same figure: the eigenvalues of Example 3.3 with the
        fitted law (alpha 0.25, beta 0.1). "fig-3a" is lambda_+ (the threshold) against alpha at
        beta 0.5; "fig-3b" is the same against beta at alpha 0.25.
    n : int
        Side of the square matrix of Example 3.3, at least 16. The paper does not state it.
    out : path
        Folder to write into; made if its parent exists. Files of the same names are replaced.
    seed : int
        Seed of the noise, for `numpy.random.default_rng`.
    seeds : int, optional
        Repeat over this many seeds, from `seed` on, at N = 330, 1000 and `n`, and give the mean
        and standard deviation. Default: one seed at `n`.

    Returns
    -------
    list of Path
        The files written: ``<figure>.png``, ``<figure>.svg`` and ``<figure>.json``.

    Raises
    ------
    InvalidValueError, InvalidTypeError
        An unknown figure, or a number outside its range.
    FileError
        `out` is a file, its parent does not exist, or it cannot be written.

    Examples
    --------
    >>> import tempfile
    >>> from rmtspec.reproduce import reproduce_figure
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     [path.name for path in reproduce_figure("fig-3b", n=100, out=folder)]
    ['fig-3b.png', 'fig-3b.svg', 'fig-3b.json']
    """
    _checks.choice(figure, "figure", FIGURES)
    n = _checks.integer(n, "n", 16, hint="It is the side of the matrix; 1000 takes a second.")
    seed = _checks.integer(seed, "seed", 0)
    if seeds is not None:
        seeds = _checks.integer(seeds, "seeds", 2, hint="A spread needs two; leave it out for one.")
    folder = output_folder(out)
    sizes = sorted({*_SIZES, n}) if seeds is not None else [n]
    numbers = range(seed, seed + (seeds or 1))
    spectra = {
        size: [spectrum(ensembles.example_3_3(size, rng=number)) for number in numbers]
        for size in sizes
    }
    if figure in _SWEEPS:
        results = _sweep_numbers(_SWEEPS[figure], spectra)
        drawing = _draw_sweep(_SWEEPS[figure], results, len(numbers))
    else:
        results = _bulk_numbers(spectra, n)
        drawing = _draw_bulk(spectra[n][0], n, seed)
    matrix = "Example 3.3: standard normal noise plus the signal of eq. (8)"
    record = {
        "schema": 1, "figure": figure, "matrix": matrix, "n": n, "seed": seed,
        "seeds": list(numbers), "sizes": sizes, "settings": SETTINGS, **results,
        "versions": versions("matplotlib"),
    }  # fmt: skip
    return _write(folder, figure, drawing, record)


def _bulk_numbers(spectra: dict[int, list[Spectrum]], n: int) -> dict[str, Any]:
    """Return the fits of each spectrum with each of the settings."""
    results: dict[str, Any] = {"alpha": _ALPHA, "beta": _BETA, "fits": {}}
    for name, options in SETTINGS.items():
        by_size = {}
        for size, several in spectra.items():
            fits = [bema(spec, _ALPHA, _BETA, **options) for spec in several]
            tests = [fit_test(spec, fit) for spec, fit in zip(several, fits, strict=True)]
            names = ("variance", "lower_edge", "bulk_edge", "threshold", "n_spikes")
            by_size[str(size)] = {
                "first": {**fits[0].to_dict(), "test": tests[0].to_dict()},
                **{key: _spread([getattr(fit, key) for fit in fits]) for key in names},
                "fit_statistic": _spread([test.statistic for test in tests]),
                "largest_eigenvalue": _spread([float(spec.eigenvalues[-1]) for spec in several]),
            }
        results["fits"][name] = by_size
    results["eigenvalues"] = plain(spectra[n][0].eigenvalues)
    return results


def _sweep_numbers(sweep: _Sweep, spectra: dict[int, list[Spectrum]]) -> dict[str, Any]:
    """Return lambda_+ of each spectrum at each value of the varying parameter."""

    def thresholds(spec: Spectrum, options: dict[str, Any]) -> list[float]:
        return [bema(spec, **sweep.at(value), **options).threshold for value in sweep.values]

    curves = {
        name: {
            str(size): _spread([thresholds(spec, options) for spec in several])
            for size, several in spectra.items()
        }
        for name, options in SETTINGS.items()
    }
    varied = {"moving": sweep.moving, "fixed": sweep.fixed, "values": list(sweep.values)}
    return {**varied, "lambda_plus": curves}


def _spread(values: list[Any]) -> dict[str, Any]:
    """Return mean and standard deviation over the seeds (nan for one), and the value of each."""
    table = np.array(values)
    alone = np.full(table.shape[1:], np.nan)
    deviation = table.std(axis=0, ddof=1) if len(table) > 1 else alone
    spread = {"mean": table.mean(axis=0), "standard_deviation": deviation, "each_seed": values}
    return dict(plain(spread))


def _draw_bulk(spec: Spectrum, n: int, seed: int) -> "Figure":
    from matplotlib.figure import Figure

    fit = bema(spec, _ALPHA, _BETA, **SETTINGS["as published"])
    drawing = Figure(figsize=(7.0, 4.4), layout="constrained")
    ax = plot_esd(spec, fit, ax=drawing.subplots(), bins=80, xlim=(0.0, 8.0))
    ax.set_title(
        f"Example 3.3, N = {n}, seed {seed}: BEMA as published, alpha {_ALPHA:g}, beta {_BETA:g}",
        fontsize="medium",
    )
    return drawing


def _draw_sweep(sweep: _Sweep, results: dict[str, Any], count: int) -> "Figure":
    from matplotlib.figure import Figure

    drawing = Figure(figsize=(9.0, 4.2), layout="constrained")
    panels = drawing.subplots(1, 2, sharey=True)
    fixed = ", ".join(f"{key} {value:g}" for key, value in sweep.fixed.items())
    for ax, (name, by_size) in zip(panels, results["lambda_plus"].items(), strict=True):
        for i, (size, curve) in enumerate(by_size.items()):
            colour = _COLOURS[i % len(_COLOURS)]
            mean = np.array(curve["mean"], dtype=float)
            label = f"N = {size}"
            if count > 1:
                spread = np.array(curve["standard_deviation"], dtype=float)
                label += f", mean and sd of {count} seeds"
                ax.fill_between(
                    sweep.values, mean - spread, mean + spread, color=colour, alpha=0.2, linewidth=0
                )
            marker = _MARKERS[i % len(_MARKERS)]
            ax.plot(sweep.values, mean, color=colour, marker=marker, markersize=4, label=label)
        ax.axhline(4.0, color="#cc3311", linestyle="--", label="4, the edge of noise alone")
        ax.set_title(f"{name}, {fixed}", fontsize="medium")
        ax.set_xlabel(sweep.moving)
        ax.legend(fontsize="small")
    panels[0].set_ylabel(r"$\lambda_+$ (eigenvalue $s^2 / n$)")
    return drawing


def _write(folder: Path, name: str, drawing: "Figure", record: dict[str, Any]) -> list[Path]:
    """Write picture and numbers, with the same bytes for the same input."""
    import matplotlib

    picture, svg = png(drawing), io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "rmtspec"}):
        drawing.savefig(svg, format="svg", metadata={"Date": None})
    text = json.dumps(plain(record), indent=1, allow_nan=False) + "\n"
    contents = {"png": picture, "svg": svg.getvalue(), "json": text.encode()}
    return [
        write_atomically(folder / f"{name}.{ending}", content)
        for ending, content in contents.items()
    ]
