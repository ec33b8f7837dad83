"""Everything that an adapter for a framework is written against.

An adapter converts and calls; formulas, decisions and files belong to this side. An adapter has
three tasks of its own:

**Listing the weights.** It lists the weights of a model as named `Matrix` objects: callables that
return an array of rows x columns and state their kind, layer, shape and bytes per entry, why they
cannot be read, and what must not be done to them. A subclass of `Target` with ``__call__`` is one.
`Subject` takes the list and the user's `Selection`, and analyses the matrices that remain; each is
read only when its turn comes.

**Carrying out a plan.** `Task` turns a `Subject` and `PlanOptions` into a `Plan`; `adopt` checks
a plan that was edited or read from a file. For each row of `Plan.cut` the adapter calls `cut` on
the matrix; after a split the factors, ``outer @ inner``, replace the weight. Where it returns None,
the matrix stays, and with it those of its layer (`leave_with`). All matrices of a layer are split
at the same rank. Multiplying the factors undoes a split. An adapter that can run its models makes a
`Calibration` from data, whose `Weights` go into the plan and into `cut`. If it also says which
layers make hidden units for which (`Calibration.hidden_units`), rows may have the action "narrow":
`narrowed` takes the rows of a `HiddenLayer` together.

**Saving.** `model_folder` writes the tensors as safetensors with a `Manifest` that lists the layers
that were split (`SplitEntry`); `Manifest.read` and `Manifest.tensors` read them back.

An adapter that can run its models also offers the noise test: `run_noise_test` takes the `Subject`
and an object that overwrites a matrix, puts it back, and returns the user's figure.

Errors are those of `rmtspec.errors`; `checks` holds the checks of options. The documentation page
"How it is built" shows a complete adapter for a toy framework.
"""

from rmtspec import _checks as checks
from rmtspec._checks import Float64Array
from rmtspec._files.reading import bounded_json, open_regular
from rmtspec._files.writing import PathLike, cause, check_space, finished_file
from rmtspec._frameworks import SUFFIXES, suffix_of
from rmtspec._records import versions
from rmtspec._text import listed
from rmtspec.checkpoint.grouping import MOST_EXPERTS
from rmtspec.checkpoint.listing import matrices_in
from rmtspec.checkpoint.manifest import (
    MANIFEST,
    Manifest,
    SplitEntry,
    manifest_entries,
    model_folder,
)
from rmtspec.checkpoint.safetensors_reader import DTYPES, looks_like, stored_tensors
from rmtspec.checkpoint.safetensors_writer import Outgoing, format_dtype
from rmtspec.checkpoint.stamps import Stamp
from rmtspec.checkpoint.stored import MappedTensor, StoredTensor, named_dtype
from rmtspec.checkpoint.wrappers import WRAPPERS
from rmtspec.comparison.compare import compare
from rmtspec.comparison.comparison import Comparison
from rmtspec.matrix.in_dtype import in_dtype
from rmtspec.matrix.pivots import pivoted
from rmtspec.matrix.product import product_spectrum
from rmtspec.matrix.rounding import product_steps
from rmtspec.matrix.split import SplitFactors, split, truncate
from rmtspec.matrix.step_share import RULES, step_share
from rmtspec.matrix.weighting import weighted_energies
from rmtspec.planning.calibration import OBJECTIVES, Calibration, Weights
from rmtspec.planning.costs import Costs, measured_cost
from rmtspec.planning.curves import Curves
from rmtspec.planning.cut import Narrowed, cut, leave_with, narrowed
from rmtspec.planning.flips import FlipOptions, run_noise_test
from rmtspec.planning.gate import UNSET, Gate, Unset
from rmtspec.planning.given import adopt
from rmtspec.planning.hidden_units import HiddenLayer, hidden_layers
from rmtspec.planning.options import PlanOptions
from rmtspec.planning.plan import Plan, least_budget, settle
from rmtspec.planning.schedule import Every, Schedule
from rmtspec.planning.search import check_target, smallest_budget
from rmtspec.planning.selection import Pattern, Selection
from rmtspec.planning.target import HEAD, Target, is_head
from rmtspec.planning.task import Matrix, NothingToAnalyzeError, Subject, Task
from rmtspec.report.matrix_report import report_on
from rmtspec.report.noise_test import NoiseTest
from rmtspec.report.options import AnalysisOptions, Progress
from rmtspec.report.refit import Refit
from rmtspec.report.report import Report
from rmtspec.report.trade_off import TradeOff, check_budgets
from rmtspec.terms import Action, Form, Kind, Why

__all__ = [
    "DTYPES", "HEAD", "MANIFEST", "MOST_EXPERTS", "OBJECTIVES", "RULES", "SUFFIXES", "UNSET",
    "WRAPPERS", "Action", "AnalysisOptions", "Calibration", "Comparison", "Costs", "Curves",
    "Every", "FlipOptions", "Float64Array", "Form", "Gate", "HiddenLayer", "Kind", "Manifest",
    "MappedTensor", "Matrix", "Narrowed", "NoiseTest", "NothingToAnalyzeError", "Outgoing",
    "PathLike", "Pattern", "Plan", "PlanOptions", "Progress", "Refit", "Report", "Schedule",
    "Selection", "SplitEntry", "SplitFactors", "Stamp", "StoredTensor", "Subject", "Target",
    "Task", "TradeOff", "Unset", "Weights", "Why", "adopt", "bounded_json", "cause",
    "check_budgets", "check_space", "check_target", "checks", "compare", "cut", "finished_file",
    "format_dtype", "hidden_layers", "in_dtype", "is_head", "least_budget", "leave_with",
    "listed", "looks_like", "manifest_entries", "matrices_in", "measured_cost", "model_folder",
    "named_dtype", "narrowed", "open_regular", "pivoted", "product_spectrum", "product_steps",
    "report_on", "run_noise_test", "settle", "smallest_budget", "split", "step_share",
    "stored_tensors", "suffix_of", "truncate", "versions", "weighted_energies",
]  # fmt: skip
