"""Analysing, planning and pruning: the functions that users call."""

from collections.abc import Iterable
from typing import Any

from onnx import ModelProto

from rmtspec.adapters.onnx._calibration import Batches, calibrate, known_weights
from rmtspec.adapters.onnx._file import embed, graphs_of, opened
from rmtspec.adapters.onnx._nodes import drop_unread, record, split_node
from rmtspec.adapters.onnx._weights import GraphMatrix, weight_matrices
from rmtspec.adapting import (
    Action,
    AnalysisOptions,
    Calibration,
    Form,
    PathLike,
    Pattern,
    Plan,
    PlanOptions,
    Progress,
    Report,
    Selection,
    SplitFactors,
    Subject,
    Task,
    Weights,
    adopt,
    cut,
    leave_with,
)
from rmtspec.errors import InvalidOptionError, InvalidValueError

_OWNER = "this model"


def analyze(
    model: ModelProto | PathLike,
    *,
    include: Pattern | None = None,
    exclude: Pattern | None = None,
    n_jobs: int | None = 1,
    progress: Progress | None = None,
    **options: Any,
) -> Report:
    """Report on the weight matrices of a model.

    Parameters
    ----------
    model : onnx.ModelProto or path
        External data are read matrix by matrix.
    include, exclude : str, pattern, predicate on (name, matrix), or several
        Which matrices, by the name of the tensor or of the node that reads it.
    n_jobs, progress, **options
        Of `rmtspec.analyze_many`.

    Raises
    ------
    FileError
        The file is no ONNX model, is truncated, or lacks its external data.
    NothingToAnalyzeError
        No weight matrix is left.
    """
    subject = _subject(opened(model), Selection(include, exclude))
    return subject.analyze(AnalysisOptions.of(options), n_jobs, progress)


def plan(
    model: ModelProto | PathLike,
    *,
    calibration: Calibration | Batches | None = None,
    **options: Any,
) -> Plan:
    """Plan what `prune` would do, without changing the model; the parameters are its own.

    Action and rank of each row may be edited before `apply_plan`.
    """
    read = opened(model)
    asked = _options(options, calibrated=calibration is not None)
    task = Task(_subject(read, asked.selection()), asked)
    report = task.analyze()
    if calibration is None or asked.budget is None:
        return task.plan(report)
    matrices = [task.subject.matrices[name] for name in task.candidates(report)]
    known = known_weights(
        read, dict(zip(task.candidates(report), matrices, strict=True)), calibration
    )
    return task.plan(report, task.curves(report, known))


def prune(
    model: ModelProto | PathLike,
    *,
    calibration: Calibration | Batches | None = None,
    **options: Any,
) -> tuple[ModelProto, Plan]:
    """Prune a model: two nodes in the place of one where that saves parameters.

    Parameters
    ----------
    model : onnx.ModelProto or path
        It stays as it is.
    calibration : Calibration or iterable of batches, optional
        What `calibrate` returned, or the batches to call it with: the split then preserves the
        outputs of each layer, not the weight.
    **options
        Of `rmtspec.adapters.torch.prune`: `rule`, `bulk_keep`, `gate`, `include`, `exclude`,
        `min_saving`, `mode`, `budget`, `ranks`, `rank_multiple`, `n_jobs`, `progress`, and those
        of `rmtspec.analyze`. The form is always "plain".

    Returns
    -------
    model : onnx.ModelProto
        Over 1 GiB of external data are not taken into it: `save` copies them from their file.
    report : Plan
        The plan as carried out, with measured errors.

    Examples
    --------
    >>> import numpy as np
    >>> import rmtspec
    >>> from onnx import TensorProto, helper, numpy_helper
    >>> from rmtspec.adapters import onnx as ro
    >>> W = rmtspec.ensembles.spiked(200, 300, strengths=[5, 9], rng=0).astype(np.float32)
    >>> node = helper.make_node("Gemm", ["x", "W"], ["y"], transB=1)
    >>> sides = [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in "xy"]
    >>> held = [numpy_helper.from_array(W, "W")]
    >>> model = helper.make_model(helper.make_graph([node], "net", sides[:1], sides[1:], held))
    >>> smaller, report = ro.prune(model, bulk_keep=0.0)
    >>> [(node.op_type, *node.input) for node in smaller.graph.node]
    [('MatMul', 'x', 'W.inner'), ('Gemm', 'y.inner', 'W.outer')]
    """
    read = opened(model)
    if calibration is not None and not isinstance(calibration, Calibration):
        calibration = calibrate(read, calibration)
    return apply_plan(read, plan(read, calibration=calibration, **options), calibration=calibration)


def apply_plan(
    model: ModelProto | PathLike,
    plan: Report,
    *,
    calibration: Calibration | Batches | None = None,
) -> tuple[ModelProto, Plan]:
    """Carry out a plan, edited or read from a file, on a copy of the model it was made for.

    Raises
    ------
    InvalidTypeError, InvalidValueError
        `plan` is not a plan, has an impossible rank or action, or does not fit the model.
    """
    made = ModelProto()
    made.CopyFrom(opened(model))
    subject = _subject(made, Selection())
    checked, matrices = adopt(plan, subject.targets, owner=_OWNER), subject.matrices
    _check(checked, matrices)
    known: dict[str, Weights] = {}
    if calibration is not None:
        wanted = {row["name"]: matrices[row["name"]] for row in checked.cut}
        known = known_weights(made, wanted, calibration)
    parts: dict[str, list[tuple[GraphMatrix, SplitFactors]]] = {}
    for row in checked.cut:
        if row["action"] == Action.LEAVE:  # another matrix of its layer stays
            continue
        matrix = matrices[row["name"]]
        low: Any = cut(row, matrix(), known.get(row["name"]), calibrated=calibration is not None)
        if low is None:
            parts.pop(matrix.layer, None)
            leave_with(row, checked.cut)
        elif row["action"] == Action.TRUNCATE:
            matrix.write(low.matrix)
        else:
            parts.setdefault(matrix.layer, []).append((matrix, low))
    names = _Names(made)
    entries, gone = [], set()
    for pairs in parts.values():
        entries.append(split_node(pairs[0][0], [factors for _, factors in pairs], names))
        gone.add(pairs[0][0].source.name)
    drop_unread(made, gone)
    record(made, entries)
    embed(made)
    return made, checked


class _Names:
    """Makes names that no tensor or node of a model has."""

    def __init__(self, model: ModelProto) -> None:
        self._taken: set[str] = set()
        for graph in graphs_of(model.graph):
            held: Iterable[Any] = (*graph.initializer, *graph.input, *graph.node)
            self._taken |= {each.name for each in held}
            self._taken |= {name for node in graph.node for name in node.output}

    def __call__(self, name: str) -> str:
        number, found = 1, name
        while found in self._taken:
            number, found = number + 1, f"{name}.{number}"
        self._taken.add(found)
        return found


def _options(options: dict[str, Any], *, calibrated: bool) -> PlanOptions:
    if options.get("form", Form.PLAIN) != Form.PLAIN:
        raise InvalidOptionError(
            f"`form` is {options['form']!r}", "'plain'", "Pivot rows have no operator in ONNX."
        )
    return PlanOptions.of(options | {"form": Form.PLAIN.value, "calibrated": calibrated})


def _subject(model: ModelProto, selection: Selection) -> Subject[GraphMatrix]:
    return Subject(dict(weight_matrices(model)), selection, _OWNER)


def _check(plan: Plan, matrices: dict[str, GraphMatrix]) -> None:
    """Raise where a row asks for what a graph cannot be given."""
    split = {row["name"] for row in plan.cut if row["action"] == Action.SPLIT}
    layers = {matrices[name].layer: name for name in sorted(split)}
    for row in plan.cut:
        if row["action"] == Action.NARROW or row.get("form", Form.PLAIN) != Form.PLAIN:
            raise InvalidValueError(
                f"The plan has {row['name']!r} with the form {row.get('form')!r}; expected "
                '\'plain\' and the action "split" or "truncate".'
            )
    for name, matrix in matrices.items():
        if matrix.layer in layers and name not in split:
            raise InvalidValueError(
                f"The plan splits {layers[matrix.layer]!r} but not {name!r}; the groups of a "
                'convolution can only be split together. Set the action of all to "split".'
            )
