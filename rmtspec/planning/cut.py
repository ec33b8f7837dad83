"""One row of a plan carried out on its matrix, by what is known about inputs and outputs."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rmtspec.errors import InvalidValueError
from rmtspec.matrix.hidden_units import refitted
from rmtspec.matrix.in_dtype import check_product, in_dtype
from rmtspec.matrix.spatial import SpatialFactors, spatial_split
from rmtspec.matrix.split import SplitFactors, Truncation, relative_errors, split, truncate
from rmtspec.matrix.weighting import Weighting
from rmtspec.planning.calibration import Weights
from rmtspec.planning.hidden_units import HiddenLayer
from rmtspec.planning.plan import settle
from rmtspec.terms import Action, Form, Kind, Why


def cut(
    row: dict[str, Any],
    array: NDArray[Any],
    known: Weights | None = None,
    *,
    calibrated: bool = False,
    by_loss: bool = False,
) -> SplitFactors | SpatialFactors | Truncation | None:
    """Return the factors of a matrix, or its truncation, as a row of a plan asks; fill in the row.

    None if the dtype of the matrix has no room for them: then the row says that it stays, and why.

    Parameters
    ----------
    row : dict
        Its errors, its predicted loss and its note are set.
    array : ndarray of shape (rows, columns)
    known : Weights, optional
        What calibration says about the matrix.
    calibrated, by_loss : bool
        Whether there is calibration at all, and whether it holds gradients: what is not known of
        this matrix goes into the note.
    """
    asked: dict[str, Any] = {
        "input_moment": None if known is None else known.input_moment,
        "output_weight": None if known is None else known.output_weight,
    }
    try:
        made = _made(row, array, known, asked)
    except InvalidValueError as error:
        if Why.OVERFLOWS not in Why.of(str(error)):
            raise
        leave(row, str(error))
        return None
    row["weight_error"] = made.error
    row["output_error"] = None if known is None else made.output_error
    row["predicted_loss"] = None if np.isnan(made.predicted_loss) else made.predicted_loss
    notes = []
    if known is None:
        notes += [Why.INPUTS_UNKNOWN.words()] if calibrated else []
    else:
        notes += [known.note]
        if row["kind"] == Kind.EMBEDDING:  # its inputs are indices: there is no moment of them
            row["output_error"] = None
        if by_loss and known.output_weight is None:
            notes.append(Why.NO_GRADIENT.words())
        if known.held_out is not None:
            row["output_error"] = _output_error(array, made, known.held_out)
    _note(row, *notes)
    return made


def leave(row: dict[str, Any], reason: str) -> None:
    """Let a matrix stay as it is after all, for that reason."""
    row["action"], row["reason"] = Action.LEAVE.value, reason
    settle(row)


def leave_with(row: dict[str, Any], rows: Iterable[dict[str, Any]]) -> None:
    """Let all matrices stay that would be split with one that stays: those of its layer."""
    for other in rows:
        if other["layer"] == row["layer"] and other["action"] == Action.SPLIT:
            leave(other, Why.LAYER_HELD.words(name=row["name"], reason=row["reason"]))


def _made(
    row: dict[str, Any], array: NDArray[Any], known: Weights | None, asked: dict[str, Any]
) -> SplitFactors | SpatialFactors | Truncation:
    if row.get("form") == Form.SPATIAL and row["action"] == Action.SPLIT:
        if known is None:
            raise InvalidValueError(
                f"The plan makes two kernels of {row['name']!r}, which are fitted to its inputs. "
                "Pass the `calibration` that the plan was made with."
            )
        return spatial_split(array, tuple(row["kernel"]), row["rank"], **asked)
    if row["action"] == Action.TRUNCATE:
        return truncate(array, row["rank"], **asked)
    factors = split(array, row["rank"], **asked)
    if row.get("form") == Form.PIVOTED:  # some rows of the product are kept as they are
        check_product(factors.outer, factors.inner)
    return factors


class Narrowed(NamedTuple):
    """A matrix without some of its rows, or of its columns.

    Attributes
    ----------
    matrix : ndarray
        What is left of it; without columns, the others are fitted to the outputs of all.
    units : ndarray of int of shape (count,)
        Which rows or columns those are, ascending.
    """

    matrix: NDArray[Any]
    units: NDArray[np.int64]


def narrowed(
    rows: Mapping[str, dict[str, Any]],
    matrices: Mapping[str, Callable[[], NDArray[Any]]],
    known: Weights | None,
    hidden: HiddenLayer | None,
) -> dict[str, Narrowed]:
    """Return the matrices of a hidden layer with fewer units, by name; fill in their rows.

    There are none if the dtype has no room for what is fitted: then the rows say that they stay.

    Parameters
    ----------
    rows : mapping of str to dict
        The rows of its matrices, by name; errors, predicted loss and note are set.
    matrices : mapping of str to callable
    known : Weights
        What calibration says about the matrix that reads the units.
    hidden : HiddenLayer

    Raises
    ------
    InvalidValueError
        Calibration does not know these units.
    """
    reader = next(iter(rows.values()))["reader"]
    if (
        known is None
        or known.output_weight is None
        or hidden is None
        or {*hidden.members} != {*rows}
    ):
        raise InvalidValueError(
            f"The plan narrows {', '.join(map(repr, rows))}: units are chosen by calibration with "
            "gradients, which does not know these as one hidden layer. Pass the `calibration` that "
            "the plan was made with."
        )
    array = matrices[reader]()
    units = hidden.order(array, known).kept(rows[reader]["rank"])
    made = {}
    for name, row in rows.items():
        if name == reader:
            continue
        whole = matrices[name]()
        made[name] = Narrowed(whole[units], units)
        row["weight_error"] = _share_lost(whole, made[name].matrix)
        row["output_error"], row["predicted_loss"] = None, 0.0
    row, dtype = rows[reader], array.dtype
    fitted = refitted(array, known.input_moment, units)
    try:
        made[reader] = Narrowed(in_dtype(fitted, dtype), units)
    except InvalidValueError as error:
        for each in rows.values():
            leave(each, str(error))
        return {}
    gap: NDArray[Any] = np.array(array, dtype=np.float64)
    scale = float(np.linalg.norm(gap))
    gap[:, units] -= fitted
    row["weight_error"] = float(np.linalg.norm(gap)) / scale if scale else 0.0
    weighting = Weighting.of(array.shape, known.input_moment, known.output_weight)
    row["predicted_loss"] = weighting.loss(gap)
    moment = known.input_moment if known.held_out is None else known.held_out
    row["output_error"] = relative_errors(array, lambda a, b: array[a:b] - gap[a:b], moment)[1]
    _note(row, known.note)
    return made


def _share_lost(whole: NDArray[Any], part: NDArray[Any]) -> float:
    """Return the relative error of a matrix whose other rows are gone."""
    norms = [float(np.linalg.norm(np.asarray(each, dtype=np.float64))) for each in (whole, part)]
    return float(np.sqrt(max(0.0, 1.0 - (norms[1] / norms[0]) ** 2))) if norms[0] else 0.0


def _note(row: dict[str, Any], *notes: str) -> None:
    """Add notes to a row."""
    if together := "; ".join(filter(None, (row.get("note"), *notes))):
        row["note"] = together


def _output_error(
    array: NDArray[Any], made: SplitFactors | SpatialFactors | Truncation, moment: NDArray[Any]
) -> float:
    """Return the relative error of the outputs for inputs with that second moment."""
    if not isinstance(made, SplitFactors):
        return relative_errors(array, lambda a, b: made.matrix[a:b].astype(np.float64), moment)[1]
    inner = np.asarray(made.inner, dtype=np.float64)
    return relative_errors(
        array, lambda a, b: np.asarray(made.outer[a:b], dtype=np.float64) @ inner, moment
    )[1]
