"""The fits that a rule counts with: the one given, or made here."""

import math
from typing import Any, NamedTuple

from rmtspec.errors import InvalidTypeError, InvalidValueError
from rmtspec.matrix.bema import BulkFit, bema
from rmtspec.matrix.fit_test import check_fit
from rmtspec.matrix.noise import fit_noise
from rmtspec.matrix.noise_fit import NoiseFit
from rmtspec.matrix.spectrum import Spectrum


class Fits(NamedTuple):
    """A fit by BEMA and a fit of the noise; one of them at least."""

    bulk: BulkFit | None
    noise: NoiseFit | None

    @property
    def n_spikes(self) -> int:
        """Spikes by BEMA, which "mp" of `fit_noise` is too; nan if nothing was fitted."""
        if self.bulk is not None:
            return self.bulk.n_spikes
        mp = self.noise is not None and self.noise.model == "mp"
        return self.n_components if mp else math.nan  # type: ignore[return-value]

    @property
    def n_components(self) -> int:
        """Components of the fit of the noise; nan if there is none."""
        return math.nan if self.noise is None else self.noise.n_components  # type: ignore[return-value]


def fits_for(W: Any, spec: Spectrum, fit: object, *, rule: str, beta: float, rng: Any) -> Fits:
    """Return the fit given, checked, and what else the rule counts with."""
    bulk, noise = None, None
    if isinstance(fit, NoiseFit):
        noise = _checked(spec, fit)
    elif fit is not None:
        bulk = _bulk(spec, fit)
    if rule == "noise" and noise is None:
        noise = fit_noise(W, beta=beta, rng=rng)
    if bulk is None and (noise is None or (rule == "bema" and noise.model != "mp")):
        bulk = bema(spec, beta=beta if noise is None else noise.beta)
    return Fits(bulk, noise)


def _bulk(spec: Spectrum, fit: object) -> BulkFit:
    if isinstance(fit, BulkFit):
        check_fit(spec, fit)
        return fit
    raise InvalidTypeError(
        f"`fit` is a {type(fit).__name__}; expected a BulkFit or a NoiseFit. Call "
        "rmtspec.bema(spec) or rmtspec.fit_noise(W)."
    )


def _checked(spec: Spectrum, fit: NoiseFit) -> NoiseFit:
    if (spec.n, spec.p) != (fit.n, fit.p):
        raise InvalidValueError(
            f"`fit` is of a matrix with n, p = {fit.n}, {fit.p}, and `W` has {spec.n}, {spec.p}; "
            "expected the fit of this matrix. Call rmtspec.fit_noise(W)."
        )
    return fit
