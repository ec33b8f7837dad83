"""The terms of reports that a program may look for; each is the string in the JSON."""

import functools
import re
from collections.abc import Sequence
from enum import StrEnum


class Kind(StrEnum):
    """What a matrix is, by the type of its layer or, in a file, by the name of its tensor."""

    MATRIX = "matrix"
    LINEAR = "linear"
    TRANSPOSED_LINEAR = "transposed linear"
    CONV = "conv"
    CONV1D = "conv1d"
    CONV2D = "conv2d"
    CONV3D = "conv3d"
    TRANSPOSED_CONV = "transposed conv"
    EMBEDDING = "embedding"
    ATTENTION = "attention"
    MLP = "mlp"
    EXPERT = "expert"
    RECURRENT = "recurrent"
    PARAMETER = "parameter"
    TENSOR = "tensor"  # in a manifest: pruned in its file, without regard to its layer

    @property
    def family(self) -> "Kind":
        """The kind as far as a file shows it: MATRIX for linear layers, CONV for convolutions."""
        wide = {"linear": Kind.MATRIX, "conv": Kind.CONV}
        return next((kind for word, kind in wide.items() if word in self), self)


class Action(StrEnum):
    """What a plan does to a matrix; ``Action("leave")`` is the same as ``Action("keep")``."""

    SPLIT = "split"
    NARROW = "narrow"  # fewer hidden units: rows or columns of the matrix leave
    TRUNCATE = "truncate"
    LEAVE = "keep"

    @classmethod
    def _missing_(cls, value: object) -> "Action | None":
        return cls.LEAVE if value == "leave" else None


class Form(StrEnum):
    """How a matrix is stored that was cut.

    A low rank takes two factors, or pivot rows and combinations of them. A kernel may be two, along
    one axis each, its "rank" the channels between them. A matrix that was narrowed is stored
    without some of its outputs or inputs; its "rank" is the number of those that stay.
    """

    PLAIN = "plain"
    PIVOTED = "pivoted"
    SPATIAL = "spatial"
    FEWER_OUTPUTS = "fewer outputs"
    FEWER_INPUTS = "fewer inputs"

    @property
    def narrow(self) -> bool:
        """Whether outputs or inputs are left out, the rank being their number."""
        return self in (Form.FEWER_OUTPUTS, Form.FEWER_INPUTS)

    def most(self, rows: int, columns: int, kernel: Sequence[int] = ()) -> int:
        """Return the largest rank that a rows x columns matrix, of that kernel, can have."""
        if self is Form.SPATIAL:
            return min(rows * kernel[1], columns // kernel[1])
        sides = {Form.FEWER_OUTPUTS: rows, Form.FEWER_INPUTS: columns}
        return sides.get(self, min(rows, columns))

    def parameters(self, rank: int, rows: int, columns: int, kernel: Sequence[int] = ()) -> int:
        """Return how many numbers a rows x columns matrix of that rank, and kernel, takes."""
        if self is Form.SPATIAL:
            return rank * (rows * kernel[1] + columns // kernel[1])
        if self.narrow:
            return rank * (columns if self is Form.FEWER_OUTPUTS else rows)
        saved = rank if self is Form.PIVOTED else 0
        return rank * (rows + columns - saved)


#: The forms of a low rank, which a user may choose from.
LOW_RANK_FORMS = (Form.PLAIN.value, Form.PIVOTED.value)


class Verdict(StrEnum):
    """What is left of a matrix without its components: noise, or something else."""

    NOISE_LIKE = "noise-like bulk"
    NOT_NOISE_LIKE = "no noise-like bulk"
    NO_BULK_LEFT = "no bulk left"
    CANNOT_TELL = "cannot tell"


class Change(StrEnum):
    """What kind of change a matrix has undergone."""

    UNCHANGED = "unchanged"
    ROUNDING = "rounding"  # no larger than rounding to the dtypes of both makes
    LOW_RANK = "low rank"  # beyond the components there is rounding only
    LOW_RANK_AND_NOISE = "low rank and noise"
    NOISE = "noise"  # a noise-like bulk and no component
    STRUCTURED = "structured"  # neither of low rank nor noise
    CANNOT_TELL = "cannot tell"


class Need(StrEnum):
    """Whether a function needs the bulk of a matrix, as far as a noise test can tell."""

    NEEDED = "needs the bulk"
    NOT_NEEDED = "does without the bulk"
    CANNOT_TELL = "cannot tell"


#: Of a reason: characters, and parts.
_LONGEST_REASON, _MOST_PARTS = 10_000, 30


class Why(StrEnum):
    """Templates of the reasons why something was left, was skipped, or cannot be relied on.

    Examples
    --------
    >>> from rmtspec.terms import Why
    >>> Why.of("no bulk; rank 8 is full")
    (<Why.NO_BULK: 'no bulk'>, <Why.FULL_RANK: 'rank {rank} is full'>)
    """

    # The matrix and its fit.
    NO_BULK = "no bulk"
    NO_SIGNAL = "no signal found"
    ALL_ZERO = "all zeros: two factors of zeros would not train"
    TOO_SMALL = "smaller side {p} is below {least}"
    UNRELIABLE = f"unreliable: {TOO_SMALL}"
    GATED = "{verdict}: let data decide with calibration= and budget=, or gate=None"
    FIT_REJECTED = "fit rejected: statistic {statistic:.4g} above {cutoff:g}"
    NOT_FINITE = (
        "`W` has {nans} nan and {infinities} infinite entries, the first at {places}; expected "
        "finite numbers. A layer whose training diverged has no spectrum; otherwise replace or "
        "drop these rows or columns."
    )
    # The noise, and what a verdict rests on.
    ESTIMATED = "an estimate: nothing was tested"
    TRACE_DIFFERS = (
        "trace and quantiles give different variances: the bulk is not that of noise of one "
        "variance"
    )
    MANY_SPIKES = "more spikes than random vectors tell apart: about {count}, by the distribution"
    NOISE_UNKNOWN = (
        "the noise cannot be told from rounding and errors: variance {variance:.3g} ± {error:.2g}"
    )
    LAW_FITS = "the Marchenko-Pastur law fits: p-value {pvalue:.3g}"
    FLIPS_AGREE = "as random sign flips of itself: p-value {pvalue:.3g}, distance {distance:.4f}"
    FLIPS_CLOSE = (
        "close to random sign flips of itself: distance {distance:.4f} is too small to matter, "
        "p-value {pvalue:.3g}"
    )
    LAW_FAILS = "the Marchenko-Pastur law does not fit: p-value {pvalue:.3g}"
    FLIPS_DIFFER = (
        "unlike random sign flips of itself: p-value {pvalue:.3g}, distance {distance:.4f}"
    )
    MOSTLY_COMPONENTS = "{count} of {p} singular values are components: less than half is left"
    FEW_ENTRIES = "half of the rows or columns have fewer than {least} entries that are not zero"
    ENTRIES_UNKNOWN = "the entries are not known, only eigenvalues"
    FLIPS_TELL_NOTHING = "sign flips do not change the singular values"
    ONLY_ROUNDING = "only rounding is left beyond rank {count}"
    TOO_MANY_COMPONENTS = (
        "{count} of {p} singular values exceed the noise: fewer than {least} would be left"
    )
    UNEQUAL = (
        "{what} differ in scale: dispersion {dispersion:.3g} where noise has {null:.3g}; "
        "count with the noise model auto"
    )
    HEAVY_TAILS = (
        "heavy tails: kurtosis {kurtosis:.3g}, that of noise is 3; count with the noise model auto"
    )
    SQUARE = "square: a bulk of noise reaches down to 0, so that nothing can lie below it"
    UNUSED_DIGITS = (
        "the last digit of {dtype} is used by {share:.0%} of the entries, where rounding leaves "
        "about 50%: {hint}"
    )
    ZERO_ENTRIES = (
        "{share:.0%} of the entries are 0 (exact if pruned, errors below those assumed if they "
        "fell below the smallest step): the edge is an upper bound"
    )
    NOTHING_BEYOND = "no bulk beyond {count} components"
    # Its metrics.
    ZERO_MATRIX = "all entries are 0"
    RANK_ONE = "the entropy is divided by log(rank), and the rank is 1"
    FEW_FOR_A_TAIL = "{count} eigenvalues above rounding: a power law is fitted to {least} or more"
    NO_TAIL = "no power law is fitted: {why}"
    INIT_LACKS = "the initial weights have no {name!r}"
    INIT_SHAPE = "the initial weights have shape {before}, these {after}"
    INIT_UNREAD = "the initial weights cannot be read: {error}"
    NO_FIGURE = "the figure is not finite in {count} of {draws} draws"
    # The rank and what it saves.
    SAVES_NOTHING = "rank {rank} is not below break-even {break_even:.1f}"
    SAVES_LITTLE = "saves {saving:.1%}, less than min_saving {least:.1%}"
    FULL_RANK = "rank {rank} is full"
    STAYS_DENSE = "stays dense: so the budget buys the most"
    SPLIT_BEFORE = "split before, at rank {present}"
    SPLIT_NO_BULK = "split before, at rank {present}: its product has no bulk"
    SPLIT_ENOUGH = "split before, at rank {present}: rank {rank} is not below that"
    SPLIT_TWICE = "split before, and its factors were split again"
    A_FACTOR = "a factor of {name!r}, which is split already: merge first, or name the factor"
    FACTORS_CHANGED = "split before, and its factors are not as the split made them"
    # What the data say.
    INPUTS_UNKNOWN = "inputs not known: weight only"
    NO_GRADIENT = "no gradient of the loss reaches it: outputs only"
    FEW_ROWS = "{rows} rows for {columns} columns: too few to trust the error"
    BUDGET_SPENT = "the budget is spent: layers were split to it before"
    # What the user asked for.
    NOT_INCLUDED = "not in `include`"
    EXCLUDED = "in `exclude`"
    NOT_NAMED = "{what}: cut only where {options} names it"
    NO_MATRIX_MEETS = "this pattern meets no matrix"
    KEPT_BY_PLAN = "kept by the plan"
    FROZEN = "frozen: requires_grad is False"
    # Other matrices of the layer, or of the weight.
    LAYER_SKIPPED = "{name} of the same layer was skipped"
    LAYER_LEFT = "{name} of the same layer is {reason}"
    LAYER_HELD = "{name} of the same layer: {reason}"
    TIED = "tied to {names}"
    TIED_ELSEWHERE = "tied to {name}, analysed there"
    # Not a matrix.
    EMPTY = "empty"
    NUMBER = "0 dimensions: a number has no spectrum"
    VECTOR = "1 dimension: a vector has no spectrum"
    DEPTHWISE = "depthwise: each output has a kernel of its own, and a vector has no spectrum"
    DIMENSIONS = "{ndim} dimensions: neither a matrix nor a convolution kernel"
    UNKNOWN_AXES = (
        "{ndim} dimensions in a {type}, whose use is not known: say which axes are outputs, then "
        "inputs, in a dict layer.matrix_axes, under the key {name!r}: 'h n d -> (n d) h'"
    )
    AXES_OF_FILE = (
        "{ndim} dimensions of unknown use: neither a convolution's weight nor a stack of experts; "
        "load it, and pass analyze the matrix that the model makes of it"
    )
    TOO_MANY_PARTS = "a stack of {count} matrices: more than {most} are no experts of a model"
    NOT_A_TENSOR = "a {type}, not a tensor"
    BIAS = "a bias or a mask: added, not multiplied"
    BUFFER = "a buffer: computed, not trained"
    SCALES = "scales of a quantised weight, no weight matrix"
    # Not numbers that can be read.
    UNSUPPORTED = "{dtype} is not supported{hint}"
    UNREADABLE = "{dtype} cannot be read here; convert it to bfloat16 or float32 first"
    WHOLE_NUMBERS = "dtype {dtype}: whole numbers are indices or codes, not weights"
    NOT_REAL = "dtype {dtype} is not of real floating numbers{hint}"
    COMPLEX = "{dtype}: the laws used here are those of real matrices"
    QUANTISED = "{what}; analyse the model before quantising it"
    NOT_DEQUANTISED = "quantised as {method} and not read: {what}"
    SCALED = "quantised, its scales are in {name}: convert it to BF16 first"
    SHARDED = "DTensor: sharded over devices; gather it first (full_tensor)"
    SPARSE = "sparse ({layout}); convert it with to_dense"
    OFFLOADED = "offloaded by accelerate: load the model whole, or analyse and prune its folder"
    META = "on the meta device: it has no values; load the weights first"
    SUBCLASS = "{type}: a tensor subclass, whose storage is not known here"
    PARAMETRIZED = (
        "parametrized: its weight is computed anew at each use; call "
        "torch.nn.utils.parametrize.remove_parametrizations first"
    )
    COMPUTED = (
        "weight_norm, spectral_norm or pruning computes this weight before each forward; "
        "call torch.nn.utils.remove_weight_norm, remove_spectral_norm or prune.remove first"
    )
    # Of two checkpoints.
    UNCHANGED = "unchanged"
    ONLY_IN = "only in {place}"
    OTHER_SHAPE = "its shape was {before} and is {after}"
    NEEDS_BASE = "whole in the adapter {place}: name the model that it belongs to as well"
    OF_ONE = "in {place}: {reason}"
    TIED_TABLE = "tied to the head: an adapter of LoRA would change the table alone"
    CHANGED_OTHERWISE = "changed, but no matrix of a layer: an adapter of LoRA cannot hold it"
    # Not read from its file.
    OPTIMIZER_STATE = "state of the optimizer, not weights"
    BESIDE_WEIGHTS = "beside the weights, which are under the key {key!r}"
    SECOND_MATRIX = "a second matrix of this name"
    SECOND_ARRAY = "a second array of this name"
    NOT_NPY = "not in .npy format"
    PICKLED = "pickled Python objects are never opened"
    DAMAGED = "damaged: {error}"
    PACKED = (
        "packed by the HDF5 filters {filters}; read are shuffle and deflate, 2 and 1, and the "
        "checksum, 3"
    )
    EXPANDED = "{shape} entries from {stored} bytes: expanded, not stored"
    UNREAD = "could not be read: {error}"
    MEMORY = "too large for the memory: {error}"
    # Not to be split.
    TOO_COARSE = "dtype {dtype} is too coarse for factors; convert it to BF16"
    OVERFLOWS = "its cut has entries beyond the largest {dtype}: convert it to a wider dtype first"
    NO_ARITHMETIC = "{dtype} has no arithmetic: prune the model before quantising it"
    PART_OF_TENSOR = "part of a tensor that holds several matrices"
    LAYER_UNKNOWN = "its name does not end in .weight, so its layer is not known"
    NAME_TAKEN = "the file has a tensor {name!r} already"
    READ_BY_LAYER = "{type} reads this weight in its own forward"
    OWN_FORWARD = "{type} has a forward of its own"
    FORWARD_REPLACED = "its forward was replaced on the instance (accelerate's hooks do that)"
    HOLDS_MORE = "this {type} holds more than a weight and a bias"
    MAX_NORM = "max_norm rescales the rows of its weight at each use"
    TRANSPOSED_CONV = "a transposed convolution"
    OTHER = "{words}"  # none of these: what an error said, or a user in a plan

    def words(self, **values: object) -> str:
        """Return the reason: the template filled in with values."""
        return str(self.value).format(**values)

    @classmethod
    def of(cls, reason: str) -> tuple["Why", ...]:
        """Return the parts of a reason in a report, in order; none for an empty one.

        What is much longer than a reason, or has many more parts, is `OTHER` as a whole.
        """
        if len(reason) > _LONGEST_REASON or reason.count("; ") > _MOST_PARTS:
            return (cls.OTHER,)
        parts = tuple(cls[str(match.lastgroup)] for match in _templates().finditer(reason))
        return parts or ((cls.OTHER,) if reason else ())


@functools.cache
def _templates() -> re.Pattern[str]:
    """Return an expression for one part of a reason, the most specific template first."""
    texts = {why.name: re.split("{.*?}", why) for why in Why if why is not Why.OTHER}
    ordered = sorted(texts, key=lambda name: (not texts[name][0], -len("".join(texts[name]))))
    groups = (f"(?P<{name}>{'.*?'.join(map(re.escape, texts[name]))})" for name in ordered)
    return re.compile(rf"(?:(?<=; )|\A)(?:{'|'.join(groups)})(?=; |\Z)", re.DOTALL)
