"""`compare`: two checkpoints, models or matrices, couple by couple."""

import functools
import math
from collections.abc import Iterable
from typing import Any

from rmtspec import _checks
from rmtspec._records import versions
from rmtspec._text import grouped
from rmtspec.comparison.change import MatrixChange
from rmtspec.comparison.columns import row_of
from rmtspec.comparison.comparison import Comparison
from rmtspec.comparison.differing import SCREENED, ChangeOptions, changed
from rmtspec.comparison.matching import Couple, alone, matched
from rmtspec.comparison.sides import Side, labels, not_an_adapter, same_place, side_of
from rmtspec.errors import InvalidValueError
from rmtspec.matrix.noise_fit import MODELS
from rmtspec.planning.selection import Pattern, Selection
from rmtspec.report.many import Skipped
from rmtspec.report.options import Progress, check_jobs, check_progress
from rmtspec.report.parallel import each
from rmtspec.terms import Change


def compare(
    a: Any,
    b: Any = None,
    *,
    include: Pattern | None = None,
    exclude: Pattern | None = None,
    components: int = 8,
    noise: str = SCREENED,
    beta: float = 0.1,
    rng: Any = 0,
    key: str | None = None,
    n_jobs: int | None = 1,
    progress: Progress | None = None,
) -> Comparison:
    """Say what changed between two checkpoints: where, how much, of what rank, and what it turned.

    For each matrix the difference W_b - W_a is analysed as a matrix of its own: its components are
    the rank of the change, with an interval; what is left of it is noise, rounding or structure.
    Beside that stand the spectra of both, and the angles between their leading singular subspaces.
    One couple of matrices is in memory at a time.

    Parameters
    ----------
    a, b : path, Checkpoint, mapping of str to matrix, or matrix
        Before and after: a base and its fine-tuning, the first and the last epoch, a model and its
        pruned folder (split layers stand for the product of their factors). Paths are those of
        `rmtspec.checkpoint.matrices_in`; matrices are arrays, or callables that return one. `b` may
        be an adapter of LoRA (a folder of PEFT), which is compared without multiplying it out; an
        adapter may also be given alone, as `a`, and two adapters may be compared.
    include, exclude : pattern, predicate or several, optional
        Applied to the names on both sides.
    components : int
        The most leading singular vectors whose subspaces are compared; no more than the spikes of
        either matrix, since the directions of a bulk mean nothing.
    noise : {"screened", "mp", "auto", "equalized", "signflip"}
        Noise model of the difference: see `rmtspec.fit_noise`. "screened" takes "mp" where the
        entries look like noise of one variance and the law fits, otherwise "auto".
    beta : float
        Chance that a change of pure noise shows a component.
    rng : int or numpy.random.Generator
        Seed of the sign flips.
    key : str, optional
        As for `rmtspec.checkpoint.matrices_in`, on both sides.
    n_jobs : int or None
        Number of processes; see `rmtspec.analyze_many`.
    progress : callable, optional
        Called after each couple with (done, total, name).

    Returns
    -------
    Comparison
        A row for each couple of matrices. Names are matched if they are the same, or the same
        without one prefix ("model.", "module."), which ``settings["names"]`` then states. Whatever
        has no row is in `skipped` with the reason.

    Raises
    ------
    FileError
        A file cannot be read, or was rewritten meanwhile; or one checkpoint is given alone and is
        no adapter.
    InvalidValueError, InvalidTypeError
        An option is not valid, or nothing can be compared: the message lists the reasons.

    Notes
    -----
    ====================  ===================================================================
    change                meaning
    ====================  ===================================================================
    unchanged             the same numbers
    rounding              one is the other in its dtype, or the difference is no larger than
                          the rounding of both
    low rank              components and, beyond them, nothing but rounding
    low rank and noise    components and a noise-like bulk
    noise                 a noise-like bulk and no component
    structured            neither of low rank nor noise
    cannot tell           too small or too sparse to be told
    ====================  ===================================================================

    The rank is exact where the difference is of low rank but for rounding, as after an adapter of
    LoRA was merged; otherwise it counts the components that stand beyond the noise, and its
    interval is that count at the levels 0.01 and 0.5. Weaker ones are not seen: see
    `rmtspec.components`.

    Overlaps are the mean squared cosines of the principal angles [1]_. A spike is touched where its
    left or right direction leans into those of the change more than a random one would, at the
    level 0.01 for all spikes of the matrix.

    .. [1] A. Bjorck, G. Golub, Numerical methods for computing angles between linear subspaces,
       Math. Comp. 27 (1973).

    Examples
    --------
    >>> import rmtspec
    >>> base = rmtspec.ensembles.spiked(400, 300, [4, 9], rng=0)
    >>> change = rmtspec.ensembles.spiked(400, 300, [3, 3, 3], variance=1e-4, rng=2)
    >>> done = rmtspec.compare({"fc": base}, {"fc": base + change})
    >>> done.row("fc")["change"], done.row("fc")["rank"]
    ('low rank and noise', 3)
    """
    options: dict[str, Any] = {
        "components": _checks.integer(components, "components", 1),
        "noise": _checks.choice(noise, "noise", (SCREENED, *MODELS)),
        "beta": _checks.inside(beta, "beta", 0.0, 1.0),
        "rng": _checks.seed(rng, "rng"),
    }
    n_jobs = check_jobs(n_jobs)
    check_progress(progress)
    selection = Selection(include, exclude)
    before, after = _sides(a, b, key)
    note = ""
    if before is None:
        places = ("", after.label)
        found = alone(after.entries, after.label)
    else:
        places = labels(before, after)
        found = matched(before.entries, after.entries, places)
        if same_place(before, after):
            note = f"a and b are the same files, {places[0]}: nothing can have changed"
    chosen, left_out, _ = selection.choose(found.couples)
    sides = [side for side in (before, after) if side is not None]
    skipped = _once([*found.skipped, *left_out, *(e for side in sides for e in side.skipped)])
    if not chosen:
        raise InvalidValueError(_nothing(places, skipped, selection.unmet))
    settings = {"a": places[0], "b": places[1], "names": found.renamed, **options,
                **selection.settings}  # fmt: skip
    if note:
        done: list[MatrixChange | Skipped] = [
            MatrixChange(couple=couple, state=Change.UNCHANGED, norms=(math.nan, math.nan, 0.0))
            for couple in chosen.values()
        ]
    else:
        made = ChangeOptions(places=places, **options)
        done = _run(chosen, made, n_jobs, progress)
    for side in sides:
        side.check_unchanged()
    results = dict(zip(chosen, done, strict=True))
    unread = [{"name": n, "reason": r.reason} for n, r in results.items() if isinstance(r, Skipped)]
    matrices = {n: r for n, r in results.items() if isinstance(r, MatrixChange)}
    if not matrices:
        raise InvalidValueError(_nothing(places, [*unread, *skipped], selection.unmet))
    return Comparison(
        [row_of(made) for made in matrices.values()], [*unread, *skipped], settings,
        versions=versions(), note=note, matrices=matrices,
    )  # fmt: skip


def _sides(a: Any, b: Any, key: str | None) -> tuple[Side | None, Side]:
    """Return the two sides, or None and an adapter; the same tensors are divided on both."""
    before = side_of(a, "a", key=key)
    if b is None:
        if not before.adapter:
            raise not_an_adapter(before)
        return None, before
    after = side_of(b, "b", key=key)
    if before.adapter and not after.adapter:
        raise InvalidValueError(
            f"`a`, {before.label}, is an adapter of LoRA and `b`, {after.label}, is none; expected "
            "the model first, then the adapter. Swap them."
        )
    if after.adapter != before.adapter or not _divided_alike(before, after):
        before, after = (
            side if side.listed is None else side_of(side.listed, name, parts=False)
            for side, name in ((before, "a"), (after, "b"))
        )
    return before, after


def _divided_alike(before: Side, after: Side) -> bool:
    """Tell whether fused tensors of both are divided into the same parts, or of neither."""
    parts: list[dict[str, set[str]]] = []
    for side in (before, after):
        found: dict[str, set[str]] = {}
        for name, matrix in () if side.listed is None else side.listed.matrices.items():
            found.setdefault(matrix.tensor.name, set()).add(name)
        parts.append(found)
    return all(parts[0][name] == parts[1][name] for name in parts[0].keys() & parts[1].keys())


def _run(
    couples: dict[str, Couple], options: ChangeOptions, n_jobs: int | None, progress: Any
) -> list[MatrixChange | Skipped]:
    names = list(couples)
    results: dict[int, MatrixChange | Skipped] = {}
    work = functools.partial(changed, options)
    for index, result in each(work, couples.items(), n_jobs=n_jobs):
        results[index] = result
        if progress is not None:
            progress(len(results), len(names), names[index])
    return [results[index] for index in range(len(names))]


def _once(skipped: Iterable[dict[str, str]]) -> list[dict[str, str]]:
    """Return entries without those that are there already."""
    return list({(entry["name"], entry["reason"]): entry for entry in skipped}.values())


def _nothing(places: tuple[str, str], skipped: list[dict[str, str]], unmet: list[str]) -> str:
    both = f"{places[0]} and {places[1]}" if places[0] else places[1]
    lines = [f"Nothing in {both} could be compared."]
    lines += [f"  {names}: {reason}" for reason, names in grouped(skipped)]
    lines += [f"  no name matches {pattern}" for pattern in unmet]
    return "\n".join(lines)
