"""Plots: a matrix's spectrum, a model by depth, drift, sizes, ranks, a figure against the size.

All take `ax`, return it and look alike; on a dark background they use light colours.
"""

from rmtspec.plot.before_after import plot_before_after
from rmtspec.plot.cdf_fit import plot_cdf_fit
from rmtspec.plot.drift import plot_drift
from rmtspec.plot.esd import plot_esd
from rmtspec.plot.estimate import plot_estimate
from rmtspec.plot.images import plot_images
from rmtspec.plot.losses import plot_losses
from rmtspec.plot.nearness import plot_nearness
from rmtspec.plot.overview import plot_overview
from rmtspec.plot.rules import plot_rules
from rmtspec.plot.scree import plot_scree
from rmtspec.plot.trade_off import plot_trade_off

__all__ = [
    "plot_before_after", "plot_cdf_fit", "plot_drift", "plot_esd", "plot_estimate", "plot_images",
    "plot_losses", "plot_nearness", "plot_overview", "plot_rules", "plot_scree", "plot_trade_off",
]  # fmt: skip
