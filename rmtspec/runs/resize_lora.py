"""Lowering the rank of an adapter of LoRA to that of its own product."""

import math
from typing import Any

import numpy as np

from rmtspec import _checks
from rmtspec._checks import Float64Array
from rmtspec._files.writing import PathLike, check_outside, empty_folder
from rmtspec._records import versions
from rmtspec.checkpoint.listing import Checkpoint, matrices_in
from rmtspec.checkpoint.lora import Pair, adapter_config
from rmtspec.errors import FileError, InvalidOptionError
from rmtspec.report.places import check_place
from rmtspec.report.report import Report
from rmtspec.runs.adapter_folder import LINEAR, TABLE, LayerFactors, write_adapter
from rmtspec.runs.copied_tensors import copied

#: Singular values below this share of the largest are rounding of the factors in float32.
_ROUNDING = float(np.finfo(np.float32).eps)


def resize_lora(
    adapter: PathLike | Checkpoint,
    out: PathLike | None,
    *,
    rank: int | None = None,
    keep: float = 1.0,
    report: PathLike | None = None,
) -> Report:
    """Write an adapter of LoRA with the ranks that its own spectra need; return what was dropped.

    The change of a layer is one matrix, scale B A. Its singular values follow from the triangular
    factors of B and A, so that it is never multiplied out. A product of rank r has no bulk of noise
    beyond it: what is cut is decided by its numerical rank, by a share of its energy, or by you.
    In the result the scale is part of the factors, whose shares are balanced.

    Parameters
    ----------
    adapter : path or Checkpoint
        A folder that PEFT wrote, or a file of kohya's scripts.
    out : path or None
        A folder that does not exist yet or is empty; None only reports.
    rank : int, optional
        The highest rank of a layer.
    keep : float
        Share of each layer's sum of squared singular values to keep; 1 drops rounding only.
    report : path, optional
        Write the report here too (.html, .csv or .json).

    Returns
    -------
    Report
        A row for each layer: "rank", "rank_before" and "weight_error".

    Raises
    ------
    FileError
        The adapter cannot be read, or is none, or `out` cannot be written.
    InvalidValueError, InvalidTypeError
        An option is not valid.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> import rmtspec
    >>> from safetensors.numpy import save_file
    >>> rng = np.random.default_rng(0)
    >>> A, B = rng.standard_normal((8, 60)), np.zeros((90, 8))
    >>> B[:, :3] = rng.standard_normal((90, 3))  # only three of the eight directions are used
    >>> layer = "base_model.model.fc"
    >>> factors = {f"{layer}.lora_A.weight": A, f"{layer}.lora_B.weight": B}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_file(factors, f"{folder}/adapter_model.safetensors")
    ...     done = rmtspec.resize_lora(folder, None)
    >>> done.row("fc.weight")["rank_before"], done.row("fc.weight")["rank"]
    (8, 3)
    """
    if rank is not None:
        rank = _checks.integer(rank, "rank", 1)
    keep = _checks.inside(keep, "keep", 0.0, 1.0, closed=True)
    if keep == 0.0:
        raise InvalidOptionError("`keep` is 0", "a share above 0")
    listed = adapter if isinstance(adapter, Checkpoint) else matrices_in(adapter)
    if report is not None:
        check_place(report, [listed.path])
    if not listed.pairs:
        raise FileError(
            f"{listed.path} has no pairs of lora_A and lora_B, or lora_down and lora_up; expected "
            "an adapter of LoRA. To make one from two models, use rmtspec extract-lora."
        )
    if out is not None:
        empty_folder(out)
        check_outside(out, listed.path)
    given = adapter_config(listed.files[0].parent)
    layers, rows = [], []
    for pair in listed.pairs.values():
        row, layer = _resized(pair, rank, keep)
        rows.append(row)
        layers.append(layer)
    factors = {t.name for pair in listed.pairs.values() for t in (pair.reading, pair.writing)}
    rest = [name for name in listed.tensors if name not in factors and not name.endswith(".alpha")]
    found = Report(
        rows, listed.skipped, {"rank": rank, "keep": keep}, versions=versions(), matrices={}
    )
    listed.check_unchanged()
    if out is not None:
        more = [copied(listed.tensors[name], name) for name in rest]
        write_adapter(out, layers, given, more)
    if report is not None:
        found.save(report)
    return found


def _resized(pair: Pair, most: int | None, keep: float) -> tuple[dict[str, Any], LayerFactors]:
    outer, inner = _finite(pair)
    left, core_left = np.linalg.qr(outer)
    right, core_right = np.linalg.qr(inner.T)
    u, s, vt = np.linalg.svd(core_left @ core_right.T)
    energy = float(np.sum(s * s))
    rank = _rank(s, keep)
    rank = max(1, rank if most is None else min(rank, most))
    root = np.sqrt(s[:rank])
    made = left @ (u[:, :rank] * root), (root[:, None] * vt[:rank]) @ right.T
    rows, columns = pair.shape
    dropped = float(np.sum(s[rank:] ** 2))
    row = {
        "name": f"{pair.layer}.weight", "kind": "adapter", "rows": rows, "columns": columns,
        "n": max(rows, columns), "p": min(rows, columns), "dtype": pair.reading.dtype,
        "numerical_rank": _rank(s, 1.0), "variance": None, "n_spikes": None, "n_components": None,
        "fit_pvalue": None, "accepted": None, "verdict": "no bulk left", "rank_before": pair.rank,
        "rank": rank, "reliable": True, "saves": rank < pair.rank,
        "parameters_before": pair.rank * (rows + columns),
        "parameters_after": rank * (rows + columns),
        "action": "resize" if rank < pair.rank else "keep",
        "weight_error": math.sqrt(dropped / energy) if energy else 0.0, "reason": "",
    }  # fmt: skip
    how = TABLE if pair.embedding else LINEAR  # of inputs x outputs, PEFT turns the product
    kernel = pair.reading.shape[1:]
    shape = (rows, *kernel) if len(kernel) > 1 else (rows, columns)
    layer = LayerFactors(pair.layer, how, shape=shape, rank=rank, load=lambda: made)
    return row, layer


def _finite(pair: Pair) -> tuple[Float64Array, Float64Array]:
    """Return the factors; raise `FileError` if their product is no matrix of float32 numbers."""
    with np.errstate(over="ignore", invalid="ignore"):
        outer, inner = pair.factors()
        largest = np.max(np.abs(outer), initial=0.0) * np.max(np.abs(inner), initial=0.0)
    if not largest * pair.rank <= float(np.finfo(np.float32).max):
        raise FileError(
            f"{pair.reading.path} changes {pair.layer!r} by numbers that are not finite, or too "
            "large for float32; expected those of a training that converged. Take the layer out "
            "of the adapter, or train it again."
        )
    return outer, inner


def _rank(s: Float64Array, keep: float) -> int:
    """Return the fewest singular values that hold a share of the energy, none of it rounding."""
    exact = int(np.sum(s > _ROUNDING * max(1, len(s)) * s[0])) if s.size else 0
    if keep == 1.0:
        return exact
    shares = np.cumsum(s * s) / max(float(np.sum(s * s)), np.finfo(float).tiny)
    return min(exact, int(np.searchsorted(shares, keep)) + 1)
