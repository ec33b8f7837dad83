"""A NoiseFit as values that a file can hold, and back, exact to the last digit."""

import math
from collections.abc import Mapping
from typing import Any

from rmtspec.laws.marchenko_pastur import MarchenkoPastur
from rmtspec.matrix.flip_test import FlipTest
from rmtspec.matrix.noise_fit import Bulk, NoiseFit
from rmtspec.matrix.spectrum import Spectrum
from rmtspec.terms import Verdict

#: Numbers that may be nan, which files hold as None.
_NUMBERS = (
    "n_components", "at_least", "components_low", "components_high", "threshold", "energy_share",
    "law_pvalue", "law_distance",
)  # fmt: skip
_WORDS = ("model", "why_model", "rounds", "beta", "rng", "note", "exact", "doubt")
_ARRAYS = ("row_scales", "column_scales")


def record_of(fit: NoiseFit) -> dict[str, Any]:
    """Return a fit as JSON-ready values and arrays; its flip test is made if it was not yet."""
    test = fit.flip_test
    content: dict[str, Any] = {name: getattr(fit, name) for name in (*_WORDS, *_ARRAYS)}
    for name in _NUMBERS:
        value = getattr(fit, name)
        content[name] = None if math.isnan(value) else value
    content["absorbed"] = [list(fit.absorbed_rows), list(fit.absorbed_columns)]
    content["settled"] = None if fit.settled is None else [str(fit.settled[0]), fit.settled[1]]
    content["spectrum"] = fit.spectrum.to_dict() | {"eigenvalues": fit.spectrum.eigenvalues}
    content["test"] = None if test is None else [test.pvalue, test.distance, test.informative]
    content["quantiles"] = None if test is None else test.quantiles
    return content


def fit_of(content: Mapping[str, Any]) -> NoiseFit:
    """Return the fit that gave this record."""
    numbers: dict[str, Any] = {
        name: math.nan if content[name] is None else content[name] for name in _NUMBERS
    }
    spec = Spectrum.from_dict(content["spectrum"])
    k, n, p = numbers["n_components"], spec.n, spec.p
    test = None
    if content["test"] is not None:
        pvalue, distance, informative = content["test"]
        test = FlipTest(pvalue, distance, informative, content["quantiles"])
    rows, columns = content["absorbed"]
    settled = content["settled"]
    return NoiseFit(
        **numbers, **{name: content[name] for name in (*_WORDS, *_ARRAYS)},
        absorbed_rows=tuple(rows), absorbed_columns=tuple(columns), spectrum=spec,
        law=None if math.isnan(k) else MarchenkoPastur((p - k) / (n - k), (n - k) / n),
        settled=None if settled is None else (Verdict(settled[0]), settled[1]),
        bulk=Bulk.tested(test),
    )  # fmt: skip
