"""A tour in under a minute: a matrix with a known answer, a data matrix, a trained network."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from rmtspec import ensembles
from rmtspec._checks import Float64Array
from rmtspec._files.writing import PathLike, output_folder, write_atomically
from rmtspec.errors import MissingDependencyError
from rmtspec.matrix.split import split
from rmtspec.plot.axes import png
from rmtspec.plot.cdf_fit import plot_cdf_fit
from rmtspec.plot.esd import plot_esd
from rmtspec.plot.scree import plot_scree
from rmtspec.report.many import analyze_many
from rmtspec.report.matrix_report import MatrixReport

#: Receives one piece of text at a time.
Say = Callable[[str], object]


def run_demo(
    out: PathLike, *, n: int = 1000, epochs: int = 30, say: Say | None = None
) -> list[Path]:
    """Run the tour and write its figures, reports and pruned network into a folder.

    Part 1 is the paper's Example 3.3, noise with a strong signal; part 2 is scikit-learn's digits;
    part 3, left out if PyTorch is not installed, is a network trained on them and pruned.

    Parameters
    ----------
    out : path
        Folder to write into; it is made if its parent exists. Files of the same names in it are
        replaced, including those of the network of an earlier demo.
    n : int
        Number of rows and columns of the matrix in part 1.
    epochs : int
        Number of training epochs in part 3.
    say : callable, optional
        Receives the text of the tour, piece by piece.

    Returns
    -------
    list of Path
        The files written, and the folder of the pruned network.

    Raises
    ------
    FileError
        The folder cannot be made or written to, or something in it that is not from an earlier
        demo has the name of the network's folder.
    MissingDependencyError
        scikit-learn, which provides the digits, is not installed.

    Examples
    --------
    >>> import tempfile
    >>> from rmtspec.demo import run_demo
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     [path.name for path in run_demo(folder, n=200, epochs=1)][:2]
    ['example-3.3-esd.png', 'example-3.3-cdf.png']
    """
    tell: Say = say if say is not None else lambda text: None
    digits = digits_matrix()
    folder = output_folder(out)
    if with_network := _has_torch():
        from rmtspec.demo.network import network_part, old_files

        old_files(folder)  # raises now rather than after all the work
    planted = ensembles.example_3_3(n, rng=0)

    tell(f"1. A known answer: Example 3.3 of the paper, {n} x {n}, noise of variance 1 plus signal")
    report = analyze_many({"Example 3.3": planted, "digits": digits})
    example, data = report.matrices["Example 3.3"], report.matrices["digits"]
    tell(f"{example!r}\n")
    tell("The truth: variance 1, so noise alone ends at 4; the signal reaches 1e8 times that.\n")
    written = _figures(example, folder, "example-3.3")

    rows, columns = digits.shape
    tell(f"2. Real data: scikit-learn's digits, {rows} pictures x {columns} pixels, standardised")
    tell(f"{data!r}\n")
    if not data.test.accepted:
        tell("The law does not fit: neighbouring pixels are not independent noise.")
    tell(_split_text(digits, data))
    written += _figures(data, folder, "digits")

    written += [report.save(folder / name) for name in ("report.json", "report.html")]
    if with_network:
        written += network_part(folder, tell, epochs=epochs)
    else:
        how = 'pip install "rmtspec[torch]"'
        tell(f"3. A trained network: left out, because PyTorch is not installed: {how}\n")
    tell("Written:\n" + "\n".join(f"  {path}" for path in written))
    return written


def digits_matrix() -> Float64Array:
    """Return scikit-learn's digits, with constant pixels dropped and the others standardised."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise MissingDependencyError(
            "The data of the demo come with scikit-learn, which is not installed: "
            'pip install "rmtspec[demo]".'
        ) from None
    pixels = np.asarray(load_digits().data, dtype=np.float64)
    pixels = pixels[:, pixels.std(axis=0) > 0.0]
    standard: Float64Array = (pixels - pixels.mean(axis=0)) / pixels.std(axis=0)
    return standard


def _split_text(W: Float64Array, report: MatrixReport) -> str:
    """Describe what a split at the chosen rank would cost and save."""
    if not report.rank.saves:
        return f"No split: {report.rank.reason}.\n"
    parts = split(W, report.rank)
    before, after = report.parameters_before, report.parameters_after
    return (
        f"Split at rank {parts.rank}: {before:,} parameters become {after:,} "
        f"({after / before:.1%}), relative error {parts.error:.3f}.\n"
    )


def _figures(report: MatrixReport, folder: Path, stem: str) -> list[Path]:
    """Write the three plots of one matrix; return their paths."""
    from matplotlib.figure import Figure

    plots: dict[str, Callable[..., Any]] = {
        "esd": plot_esd,
        "cdf": partial(plot_cdf_fit, test=report.test),
        "scree": plot_scree,
    }
    written = []
    for kind, plot in plots.items():
        figure = Figure(figsize=(7.0, 4.2), layout="constrained")
        ax = plot(report.spectrum, report.fit, ax=figure.subplots())
        ax.set_title(report.name)
        written.append(write_atomically(folder / f"{stem}-{kind}.png", png(figure)))
    return written


def _has_torch() -> bool:
    try:
        import rmtspec.adapters.torch  # noqa: F401
    except MissingDependencyError:
        return False
    return True
