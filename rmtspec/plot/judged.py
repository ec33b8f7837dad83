"""The verdict of a plot: given, or that of the default test; checked."""

from rmtspec.errors import InvalidTypeError
from rmtspec.matrix.bema import BulkFit
from rmtspec.matrix.fit_test import FitTest, fit_test
from rmtspec.matrix.noise_fit import NoiseFit
from rmtspec.matrix.spectrum import Spectrum


def judged(
    spectrum: Spectrum, fit: BulkFit | None, test: FitTest | None, noise: NoiseFit | None = None
) -> FitTest | None:
    """Return `test`, checked, or the default test of `fit` if there is one."""
    if test is not None and not isinstance(test, FitTest):
        raise InvalidTypeError(
            f"`test` is a {type(test).__name__}; expected a FitTest (from rmtspec.fit_test) "
            "or None."
        )
    if noise is not None and not isinstance(noise, NoiseFit):
        raise InvalidTypeError(
            f"`noise` is a {type(noise).__name__}; expected a NoiseFit (from rmtspec.fit_noise) "
            "or None."
        )
    return fit_test(spectrum, fit) if test is None and fit is not None else test
