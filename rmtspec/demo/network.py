"""Part 3 of the demo: train a network, prune it, measure it, save it, put it back together.

It needs PyTorch, so `rmtspec.demo` imports this module only if that is installed.
"""

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from rmtspec._files.writing import write_atomically
from rmtspec.adapters import torch as rt
from rmtspec.checkpoint.manifest import MANIFEST, WEIGHTS
from rmtspec.errors import FileError
from rmtspec.plot.axes import png
from rmtspec.plot.esd import plot_esd
from rmtspec.report.report import Report

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_DIMS = (64, 300, 300, 10)
_TRAINING_PICTURES = 1200
_MODEL = "digits-model"
#: Numbers of singular values for which the accuracy is drawn.
_RANKS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 20, 30, 50, 100)
_BATCHES = (1, 256)
_ROUNDS = 500
_DATA_FREE, _DATA_AWARE = "#0077bb", "#ee7733"


@dataclass(frozen=True, slots=True)
class _Digits:
    """scikit-learn's digits, 8 x 8 pixels from 0 to 1, less the mean of the training pictures."""

    train: torch.Tensor
    train_labels: torch.Tensor
    test: torch.Tensor
    test_labels: torch.Tensor

    @classmethod
    def load(cls) -> "_Digits":
        from sklearn.datasets import load_digits

        digits = load_digits()
        order = np.random.default_rng(0).permutation(len(digits.target))
        pixels = torch.from_numpy((digits.data[order] / 16.0).astype(np.float32))
        labels = torch.from_numpy(digits.target[order].astype(np.int64))
        cut = _TRAINING_PICTURES
        pixels = pixels - pixels[:cut].mean(dim=0)
        return cls(pixels[:cut], labels[:cut], pixels[cut:], labels[cut:])

    def right(self, model: nn.Module) -> int:
        """Return how many test pictures the model classifies correctly."""
        with torch.inference_mode():
            return int((model(self.test).argmax(dim=1) == self.test_labels).sum())

    def share(self, right: int) -> str:
        return f"{right / len(self.test):.1%}"

    def standard_error(self, right: int) -> float:
        """Return the standard error of this share of the test pictures."""
        share = right / len(self.test)
        return float(np.sqrt(share * (1.0 - share) / len(self.test)))


@dataclass(frozen=True, slots=True)
class _Curves:
    """Numbers of correct test pictures by the rank of the largest layer, the others as trained."""

    row: dict[str, Any]
    dense: int
    data_free: list[int]
    data_aware: list[int]
    digits: _Digits

    @classmethod
    def measure(cls, model: nn.Module, digits: _Digits, report: Report) -> "_Curves":
        row = max(report.rows, key=lambda row: int(row["parameters_before"]))
        plan = rt.plan(model, gate=None)  # its ranks are edited
        for other in plan.rows:
            other["action"] = "split" if other["name"] == row["name"] else "keep"

        def right(rank: int, **options: Any) -> int:
            plan.row(row["name"])["rank"] = rank
            return digits.right(rt.apply_plan(model, plan, **options)[0])

        data_free = [right(rank) for rank in _RANKS]
        stats = rt.calibrate(model, [digits.train], objective="outputs")
        data_aware = [right(rank, calibration=stats) for rank in _RANKS]
        return cls(row, digits.right(model), data_free, data_aware, digits=digits)

    def text(self) -> str:
        """Say how many singular values are enough for the accuracy of the trained network."""
        floor = self.dense - len(self.digits.test) * self.digits.standard_error(self.dense)
        free, aware = (_enough(rights, floor) for rights in (self.data_free, self.data_aware))
        return (
            f"Only {self.row['name']} split: within one standard error of the trained network "
            f"{free}\n(with calibration {aware}). {self.row['n_components']} exceed its noise.\n"
        )

    def draw(self) -> "Figure":
        from matplotlib.figure import Figure

        drawing = Figure(figsize=(7.0, 4.2), layout="constrained")
        ax = drawing.subplots()
        points = 100.0 / len(self.digits.test)
        for rights, colour, style, label in (
            (self.data_free, _DATA_FREE, "o-", "data-free: nearest weight"),
            (self.data_aware, _DATA_AWARE, "s--", "data-aware: nearest outputs on training data"),
        ):
            share = points * np.array(rights)
            ax.plot(_RANKS, share, style, color=colour, markersize=5, label=label)
        dense = points * self.dense
        ax.axhline(dense, color="#333333", linestyle=":", label=f"as trained, {dense:.1f} %")
        if count := self.row["n_components"]:
            ax.axvline(count, color="#aa3377", linestyle="-.", label=f"components: {count}")
        ax.set_xscale("log")
        ax.set_xticks([1, 2, 5, 10, 20, 50, 100])
        ax.xaxis.set_major_formatter("{x:g}")
        ax.minorticks_off()
        ax.set(ylim=(0.0, 104.0), ylabel="test accuracy in %")
        ax.set_xlabel(f"singular values kept, of {self.row['p']}")
        size = f"{self.row['rows']} x {self.row['columns']}"
        ax.set_title(f"Largest layer ({self.row['name']}, {size}) split, the others as trained")
        ax.legend(loc="lower right", fontsize="small", framealpha=0.95)
        return drawing


def _enough(rights: list[int], floor: float) -> str:
    """Say from which rank on at least `floor` pictures are right."""
    low = [rank for rank, right in zip(_RANKS, rights, strict=True) if right < floor]
    above = [rank for rank in _RANKS if not low or rank > low[-1]]
    return f"from {above[0]} singular values on" if above else f"not up to {_RANKS[-1]}"


def network_part(folder: Path, tell: Callable[[str], object], *, epochs: int) -> list[Path]:
    """Run part 3 of the demo; return the files written and the folder of the model."""
    with _one_thread():
        digits = _Digits.load()
        sizes = f"{len(digits.train)} digits to train on, {len(digits.test)} to test"
        tell(f"3. A trained network: {'-'.join(map(str, _DIMS))}, {sizes}")
        model = _trained(digits, epochs)
        tell(f"Trained for {epochs} epochs: {digits.share(digits.right(model))} correct.")
        analysis = rt.analyze(model, noise="auto")  # as the pruning does
        tell(f"{analysis!r}")
        tell("Pruning keeps the last layer: it is too small to judge. The counts include biases.\n")
        table, small, report = _pruned(model, digits)
        tell(table)
        curves = _Curves.measure(model, digits, analysis)
        tell(curves.text())
        tell(_latency_text(model, small, digits))
        tell(_kept_text(small, report, digits, folder))
    drawings = {"esd": _draw_esd(analysis), "accuracy": curves.draw()}
    written = [
        write_atomically(folder / f"{_MODEL}-{name}.png", png(drawing))
        for name, drawing in drawings.items()
    ]
    written += [report.save(folder / f"{_MODEL}-report.{ending}") for ending in ("json", "html")]
    return [*written, folder / _MODEL]


def old_files(folder: Path) -> list[Path]:
    """Return the files of a model that an earlier demo saved in `folder`, to be replaced.

    Something else of that name, or a folder with other files in it, raises a FileError.
    """
    place = folder / _MODEL
    if place.is_dir() and not place.is_symlink():
        names = {path.name for path in place.iterdir()}
        if not names or (MANIFEST in names and names <= {MANIFEST, WEIGHTS}):
            return [place / name for name in sorted(names, reverse=True)]  # the manifest last
    elif not place.exists() and not place.is_symlink():
        return []
    raise FileError(
        f"{place} is in the way; expected no such file or folder, or a folder with the {MANIFEST} "
        f"and {WEIGHTS} of an earlier demo and nothing else. Move it, or name another folder."
    )


def latency_words(before: float, after: float, margin: float = 0.05) -> str:
    """Say in words whether `after` is less than `before` seconds by more than the `margin`."""
    change = after / before
    if change > 1.0 + margin:
        return f"slower, takes {change:.2f} times as long"
    if change < 1.0 - margin:
        return f"faster, takes {change:.2f} times as long"
    return f"no faster and no slower within {margin:.0%}"


def _fresh() -> rt.MLP:
    """Return the untrained network, always the same; the random state of the caller is kept."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return rt.MLP(_DIMS)


def _trained(digits: _Digits, epochs: int) -> rt.MLP:
    """Return the network after plain training: SGD with momentum and slight weight decay."""
    model = _fresh()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)
    shuffle = torch.Generator().manual_seed(0)
    for _ in range(epochs):
        for batch in torch.split(torch.randperm(len(digits.train), generator=shuffle), 64):
            optimizer.zero_grad()
            outputs = model(digits.train[batch])
            loss = nn.functional.cross_entropy(outputs, digits.train_labels[batch])
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    return model.eval()


def _pruned(model: nn.Module, digits: _Digits) -> tuple[str, nn.Module, Report]:
    """Return a table of ways to prune, the model that keeps only the spikes, and its report."""
    aware = {"calibration": [digits.train]}
    ways: dict[str, dict[str, Any]] = {
        "rt.prune(model)": {},
        "rt.prune(model, bulk_keep=0)": {"bulk_keep": 0.0},
        "rt.prune(model, bulk_keep=0, calibration=pictures)": {"bulk_keep": 0.0, **aware},
        "rt.prune(model, budget=0.1, calibration=pictures)": {"budget": 0.1, **aware},
    }
    pruned = {way: rt.prune(model, **options) for way, options in ways.items()}
    models = {"as trained": model, **{way: result[0] for way, result in pruned.items()}}
    whole = rt.count_parameters(model)
    lines = [f"  {'':50}  {'parameters':>15}  test accuracy"]
    for way, one in models.items():
        right, size = digits.right(one), rt.count_parameters(one)
        sizes = f"{size:,}  {size / whole:6.1%}"
        lines.append(f"  {way:50}  {sizes:>15}  {digits.share(right)} ({right})")
    error = 100.0 * digits.standard_error(digits.right(model))
    lines += [
        f"With {len(digits.test)} pictures, accuracy has a standard error of {error:.1f} points.",
        "The default keeps 45 % of the bulk, for safety; bulk_keep=0 keeps only the signal.",
        "`calibration` preserves the outputs of layers on the training pictures, not the weights.",
        "`budget` is the share to keep of the weights that may be split.",
    ]
    small, report = pruned["rt.prune(model, bulk_keep=0)"]
    return "\n".join(lines) + "\n", small, report


def _latency_text(before: nn.Module, after: nn.Module, digits: _Digits) -> str:
    """Return the measured times of both models."""
    lines = [f"Time with bulk_keep=0, one thread, medians of {_ROUNDS} alternating measurements:"]
    slower = False
    for size in _BATCHES:
        old, new = _latencies((before, after), digits.test[:size])
        words = latency_words(old, new)
        slower |= not words.startswith("faster")
        lines.append(f"  batch {size:3}: {1e3 * old:.3g} ms, after {1e3 * new:.3g} ms: {words}")
    if slower:
        lines.append(
            "A split layer is two calls instead of one: if there is little to compute, fewer "
            "parameters\nsave no time."
        )
    return "\n".join(lines) + "\n"


def _latencies(models: tuple[nn.Module, ...], inputs: torch.Tensor) -> list[float]:
    """Return the median seconds of one call of each model, measured in turn."""
    seconds: list[list[float]] = [[] for _ in models]
    with torch.inference_mode():
        for turn in range(-10, _ROUNDS):  # the first ten warm up
            order = range(len(models)) if turn % 2 else reversed(range(len(models)))
            for index in order:
                start = time.perf_counter()
                models[index](inputs)
                stop = time.perf_counter()
                if turn >= 0:
                    seconds[index].append(stop - start)
    return [statistics.median(measured) for measured in seconds]


def _kept_text(small: nn.Module, report: Report, digits: _Digits, folder: Path) -> str:
    """Save the model and load it, and merge it; say how well the outputs agree."""
    for file in old_files(folder):
        file.unlink()
    saved = rt.save(small, folder / _MODEL)
    loaded = rt.load(_fresh, saved).eval()
    merged = rt.merge(small)
    with torch.inference_mode():
        expected = small(digits.test)
        again, dense = loaded(digits.test), merged(digits.test)
    size = sum(path.stat().st_size for path in saved.iterdir())
    before = report.totals["bytes_before"]
    return (
        f"Saved, {size:,} bytes (weights as trained: {before:,}), and loaded back: outputs "
        f"{_agreement(expected, again)}.\n"
        f"Merged back into dense layers, {rt.count_parameters(merged):,} parameters: outputs "
        f"{_agreement(expected, dense)}.\n"
    )


def _agreement(expected: torch.Tensor, outputs: torch.Tensor) -> str:
    if torch.equal(expected, outputs):
        return "equal bit for bit"
    gap = float((expected - outputs).abs().max() / expected.abs().max())
    return f"differ by at most {gap:.1e} of the largest"


def _draw_esd(report: Report) -> "Figure":
    from matplotlib.figure import Figure

    name, first = next(iter(report.matrices.items()))
    drawing = Figure(figsize=(7.0, 4.2), layout="constrained")
    ax = plot_esd(first.spectrum, first.fit, ax=drawing.subplots(), bins=20)
    row = report.row(name)
    ax.set_title(f"First layer of the trained network, {row['rows']} x {row['columns']}")
    return drawing


@contextmanager
def _one_thread() -> Iterator[None]:
    """Run torch on one thread: faster for such small matrices, and reproducible."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
