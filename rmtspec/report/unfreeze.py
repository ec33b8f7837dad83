"""Which weights to train: the share of each kind of module with most energy beyond the noise."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rmtspec import _checks
from rmtspec._files.writing import PathLike, write_atomically
from rmtspec._text import aligned, counted, printable
from rmtspec.errors import InvalidOptionError, InvalidTypeError, InvalidValueError
from rmtspec.report.report import Report
from rmtspec.terms import Why

#: Suffixes of the file.
YAML_SUFFIXES = (".yaml", ".yml")
#: How the file begins.
HEAD = "# Unfrozen by rmtspec: "
#: Matches what stands in YAML as it is: no blank, quote, colon or hash.
_PLAIN = re.compile(r"\^[\w.\-/\\\[\](){}+*?|,]+\$", re.ASCII)
_PART = re.compile(r"\[[^\[\]]*\]$")


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class Unfrozen:
    """The weights that `unfreeze` chose.

    Attributes
    ----------
    share : float
        The share of each kind that was asked for.
    chosen : dict of str to list of str
        Names of parameters to train by kind of module, most energy beyond the noise first.
    frozen : dict of str to list of str
        Names of the others, in the same order.
    left_out : list of dict
        "name" and "reason" of each matrix whose energy beyond the noise is not known.
    """

    share: float
    chosen: dict[str, list[str]]
    frozen: dict[str, list[str]]
    left_out: list[dict[str, str]]

    @property
    def patterns(self) -> list[str]:
        """A regular expression for each chosen name, with plain dots, as axolotl reads them."""
        return [_pattern(name) for names in self.chosen.values() for name in names]

    def to_yaml(self, path: PathLike | None = None) -> str:
        """Return the patterns as YAML, ``unfrozen_parameters:``; write them to `path` if given.

        A comment names each kind. Weights of a kind of which none was chosen stand in comments.
        """
        what = f"the top {self.share:.0%} of each kind by share of energy beyond the noise"
        lines = [f"{HEAD}{what}", f"unfrozen_parameters:{'' if self.patterns else ' []'}"]
        for kind, names in self.chosen.items():
            lines.append(f"# {printable(kind)} layers")
            lines += [f"- {_scalar(_pattern(name))}" for name in names]
            if not names:
                lines += [f"# - {_scalar(_pattern(name))}" for name in self.frozen[kind]]
        content = "\n".join(lines) + "\n"
        if path is not None:
            write_atomically(path, content)
        return content

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-ready values."""
        return {
            "share": self.share, "chosen": self.chosen, "frozen": self.frozen,
            "left_out": self.left_out,
        }  # fmt: skip

    def __len__(self) -> int:
        return len(self.patterns)

    def __repr__(self) -> str:
        pairs: list[tuple[str, object]] = [
            (kind, f"{len(names)} of {len(names) + len(self.frozen[kind])}")
            for kind, names in self.chosen.items()
        ]
        if self.left_out:
            pairs.append(("left out", counted(len(self.left_out), "matrix", "matrices")))
        return aligned(f"Unfrozen: {len(self)}, {self.share:.0%} of each kind", pairs)


def unfreeze(report: Report, share: float, *, keys: Mapping[str, str] | None = None) -> Unfrozen:
    """Choose which weights to train: of each kind of module those with most energy beyond noise.

    This ranks by "energy_share" of the rows, the share of ||W||^2 that the components beyond the
    noise have, among modules of one kind: ``mlp.down_proj`` of all layers. The number chosen is the
    share of their number, rounded down, as Spectrum [1]_ does with a share of its own ratio.

    Parameters
    ----------
    report : Report
        Of one model; best counted with ``noise="auto"``.
    share : float
        Of each kind, above 0 and at most 1.
    keys : mapping of str to str, optional
        Name of the parameter for each name in the report, where these are names of layers:
        ``{name: m.key for name, m in rt.weight_matrices(model)}`` for a model of torch.

    Returns
    -------
    Unfrozen
        The parts of one tensor (experts of a stack; q, k, v) are chosen together, by the mean of
        their shares.

    Raises
    ------
    InvalidTypeError
        `report` is not a Report.
    InvalidValueError
        `share` is outside its range, no row has a share of energy, or names are not known.

    References
    ----------
    .. [1] E. Hartford et al., Spectrum: targeted training on signal to noise ratio,
       arXiv:2406.06623 (2024).

    Examples
    --------
    >>> import rmtspec
    >>> spiked = rmtspec.ensembles.spiked
    >>> layers = {
    ...     f"model.layers.{k}.mlp.up_proj.weight": spiked(200, 100, [2.0 * k], rng=k)
    ...     for k in (1, 2, 3)
    ... }
    >>> print(rmtspec.unfreeze(rmtspec.analyze_many(layers), 0.4).to_yaml())
    # Unfrozen by rmtspec: the top 40% of each kind by share of energy beyond the noise
    unfrozen_parameters:
    # mlp.up_proj layers
    - ^model.layers.3.mlp.up_proj.weight$
    <BLANKLINE>
    """
    if not isinstance(report, Report):
        raise InvalidTypeError(
            f"`report` is a {type(report).__name__}; expected a Report. Call rmtspec.analyze_many "
            "or rmtspec.analyze_checkpoint first."
        )
    check_share(share, "share")
    if keys is None and "torch" in report.versions:
        raise InvalidValueError(
            "`report` is on a model of torch, whose names are those of layers; expected `keys` "
            "with the names of the parameters. Pass {name: m.key for name, m in "
            "rt.weight_matrices(model)}."
        )
    ranked, left_out = _by_parameter(report, keys)
    if not ranked:
        raise InvalidValueError(
            "No row of `report` has an energy_share; expected some. Without a count of components "
            "nothing can be ranked: see the column verdict_reason."
        )
    kinds: dict[str, list[str]] = {}
    for name in sorted(ranked, key=lambda name: -ranked[name]):
        kinds.setdefault(kind_of(name), []).append(name)
    order = dict.fromkeys(map(kind_of, ranked))  # as the report has them
    count = {kind: math.floor(share * len(kinds[kind]) + 1e-9) for kind in order}
    return Unfrozen(
        share, {kind: kinds[kind][: count[kind]] for kind in order},
        {kind: kinds[kind][count[kind] :] for kind in order}, left_out,
    )  # fmt: skip


def check_share(share: Any, name: str) -> None:
    """Raise unless a share, given as the option `name`, is above 0 and at most 1."""
    hint = "0.25 takes a quarter of each kind of module."
    if _checks.inside(share, name, 0.0, 1.0, closed=True, hint=hint) == 0.0:
        raise InvalidOptionError(f"`{name}` is {share!r}", "a number in (0, 1]", hint)


def check_yaml(path: PathLike) -> None:
    """Raise unless the suffix of `path` is that of a file of YAML."""
    if Path(path).suffix.lower() not in YAML_SUFFIXES:
        raise InvalidValueError(
            f"{path} has the suffix {Path(path).suffix!r}; expected {' or '.join(YAML_SUFFIXES)} "
            "for the names of weights to train."
        )


def kind_of(name: str) -> str:
    """Return the kind of module that a parameter belongs to: "mlp.down_proj", "experts.*.w1"."""
    parts = name.removesuffix(".weight").split(".")
    numbers = [i for i, part in enumerate(parts) if part.isdecimal()]
    rest = parts[numbers[0] + 1 :] if numbers else parts
    return ".".join("*" if part.isdecimal() else part for part in rest or parts)


def _by_parameter(
    report: Report, keys: Mapping[str, str] | None
) -> tuple[dict[str, float], list[dict[str, str]]]:
    """Return the share of energy of each parameter, and what has none."""
    sums: dict[str, tuple[float, int]] = {}
    left_out: list[dict[str, str]] = []
    for row in report.rows:
        name, energy = str(row["name"]), row.get("energy_share")
        if energy is None:
            why = row.get("verdict_reason") or row["reason"] or Why.NO_BULK.words()
            left_out.append({"name": name, "reason": why})
            continue
        if keys is not None and name not in keys:
            raise InvalidValueError(
                f"`keys` has no {name!r}; expected the parameter of every name in the report."
            )
        key = _PART.sub("", name) if keys is None else keys[name]
        total, size = sums.get(key, (0.0, 0))
        entries = int(row["parameters_before"])
        sums[key] = total + energy * entries, size + entries
    return {name: total / size for name, (total, size) in sums.items()}, left_out


def _pattern(name: str) -> str:
    """Return an expression for a name. Dots stay: axolotl escapes them itself, and only once."""
    return f"^{re.escape(name).replace(chr(92) + '.', '.').replace(chr(92) + '-', '-')}$"


def _scalar(text: str) -> str:
    """Return text as YAML has it: as it is, or between double quotes with escapes."""
    if _PLAIN.fullmatch(text):
        return text
    quoted = text.replace("\\", "\\\\").replace('"', '\\"')
    shown = (c if c.isprintable() else f"\\U{ord(c):08X}" for c in quoted)
    return f'"{"".join(shown)}"'
