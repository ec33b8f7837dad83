"""Plots of a spectrum: its density, its distribution function, its eigenvalues by rank."""

from rmtspec.plot.cdf_fit import plot_cdf_fit
from rmtspec.plot.esd import plot_esd
from rmtspec.plot.scree import plot_scree

__all__ = ["plot_cdf_fit", "plot_esd", "plot_scree"]
