"""Plots of a spectrum: density, distribution function, singular values by rank, ranks by rule."""

from rmtspec.plot.cdf_fit import plot_cdf_fit
from rmtspec.plot.esd import plot_esd
from rmtspec.plot.rules import plot_rules
from rmtspec.plot.scree import plot_scree

__all__ = ["plot_cdf_fit", "plot_esd", "plot_rules", "plot_scree"]
