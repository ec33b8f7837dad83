"""Plots: density, distribution function, singular values and ranks; a figure against the size."""

from rmtspec.plot.cdf_fit import plot_cdf_fit
from rmtspec.plot.esd import plot_esd
from rmtspec.plot.images import plot_images
from rmtspec.plot.losses import plot_losses
from rmtspec.plot.nearness import plot_nearness
from rmtspec.plot.rules import plot_rules
from rmtspec.plot.scree import plot_scree
from rmtspec.plot.trade_off import plot_trade_off

__all__ = [
    "plot_cdf_fit", "plot_esd", "plot_images", "plot_losses", "plot_nearness", "plot_rules",
    "plot_scree", "plot_trade_off",
]  # fmt: skip
