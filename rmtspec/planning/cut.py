"""One row of a plan carried out on its matrix, by what is known about inputs and outputs."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from rmtspec.matrix.split import SplitFactors, Truncation, relative_errors, split, truncate
from rmtspec.planning.calibration import Weights
from rmtspec.terms import Action, Kind, Why


def cut(
    row: dict[str, Any],
    array: NDArray[Any],
    known: Weights | None = None,
    *,
    calibrated: bool = False,
    by_loss: bool = False,
) -> SplitFactors | Truncation:
    """Return the factors of a matrix, or its truncation, as a row of a plan asks; fill in the row.

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
    made: SplitFactors | Truncation
    if row["action"] == Action.TRUNCATE:
        made = truncate(array, row["rank"], **asked)
    else:
        made = split(array, row["rank"], **asked)
    row["weight_error"] = made.error
    row["output_error"] = None if known is None else made.output_error
    row["predicted_loss"] = None if np.isnan(made.predicted_loss) else made.predicted_loss
    notes = [row.get("note")]
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
    if any(notes):
        row["note"] = "; ".join(filter(None, notes))
    return made


def _output_error(
    array: NDArray[Any], made: SplitFactors | Truncation, moment: NDArray[Any]
) -> float:
    """Return the relative error of the outputs for inputs with that second moment."""
    if isinstance(made, Truncation):
        return relative_errors(array, lambda a, b: made.matrix[a:b].astype(np.float64), moment)[1]
    inner = np.asarray(made.inner, dtype=np.float64)
    return relative_errors(
        array, lambda a, b: np.asarray(made.outer[a:b], dtype=np.float64) @ inner, moment
    )[1]
