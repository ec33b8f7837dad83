"""Random-matrix spectra of weight matrices.

`bema` finds where the noise of a matrix ends, `fit_test` tells whether to believe it,
`choose_rank` decides how many singular values are signal, and `split` returns two thinner layers
that keep them. `analyze` does all but the split in one call.

Names are loaded on first use, so ``import rmtspec`` costs little more than ``import numpy``.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rmtspec import checkpoint as checkpoint
    from rmtspec import ensembles as ensembles
    from rmtspec import errors as errors
    from rmtspec import laws as laws
    from rmtspec import plot as plot
    from rmtspec import reproduce as reproduce
    from rmtspec import terms as terms
    from rmtspec.comparison.compare import compare as compare
    from rmtspec.comparison.comparison import Comparison as Comparison
    from rmtspec.errors import RmtspecError as RmtspecError
    from rmtspec.laws.gamma_bulk import GammaMarchenkoPastur as GammaMarchenkoPastur
    from rmtspec.laws.marchenko_pastur import MarchenkoPastur as MarchenkoPastur
    from rmtspec.laws.tracy_widom import TracyWidom as TracyWidom
    from rmtspec.matrix.bema import BulkFit as BulkFit
    from rmtspec.matrix.bema import bema as bema
    from rmtspec.matrix.components import Components as Components
    from rmtspec.matrix.components import components as components
    from rmtspec.matrix.estimate_spectrum import estimate_spectrum as estimate_spectrum
    from rmtspec.matrix.fit_test import FitTest as FitTest
    from rmtspec.matrix.fit_test import fit_test as fit_test
    from rmtspec.matrix.gamma_fit import GammaFit as GammaFit
    from rmtspec.matrix.gamma_fit import fit_gamma as fit_gamma
    from rmtspec.matrix.lower_edge import LowerEnd as LowerEnd
    from rmtspec.matrix.lower_edge import below_bulk as below_bulk
    from rmtspec.matrix.metrics import Metrics as Metrics
    from rmtspec.matrix.noise import fit_noise as fit_noise
    from rmtspec.matrix.noise_fit import NoiseFit as NoiseFit
    from rmtspec.matrix.noise_variance import NoiseVariance as NoiseVariance
    from rmtspec.matrix.noise_variance import noise_variance as noise_variance
    from rmtspec.matrix.rank import RankDecision as RankDecision
    from rmtspec.matrix.rank import choose_rank as choose_rank
    from rmtspec.matrix.rounding import RoundingNoise as RoundingNoise
    from rmtspec.matrix.rounding import rounding_noise as rounding_noise
    from rmtspec.matrix.spectrum import Spectrum as Spectrum
    from rmtspec.matrix.spectrum import spectrum as spectrum
    from rmtspec.matrix.spectrum_estimate import SpectrumEstimate as SpectrumEstimate
    from rmtspec.matrix.split import SplitFactors as SplitFactors
    from rmtspec.matrix.split import split as split
    from rmtspec.matrix.traps import Traps as Traps
    from rmtspec.matrix.traps import correlation_traps as correlation_traps
    from rmtspec.planning.plan import Plan as Plan
    from rmtspec.report.compare_rules import RuleComparison as RuleComparison
    from rmtspec.report.compare_rules import compare_rules as compare_rules
    from rmtspec.report.many import analyze_many as analyze_many
    from rmtspec.report.matrix_report import MatrixReport as MatrixReport
    from rmtspec.report.matrix_report import analyze as analyze
    from rmtspec.report.report import Report as Report
    from rmtspec.report.unfreeze import Unfrozen as Unfrozen
    from rmtspec.report.unfreeze import unfreeze as unfreeze
    from rmtspec.runs.analyze import analyze_checkpoint as analyze_checkpoint
    from rmtspec.runs.extract_lora import extract_lora as extract_lora
    from rmtspec.runs.merge import merge_checkpoint as merge_checkpoint
    from rmtspec.runs.prune import prune_checkpoint as prune_checkpoint
    from rmtspec.runs.resize_lora import resize_lora as resize_lora

__version__ = "0.1.0"

_HOME = {
    "BulkFit": "matrix.bema",
    "Comparison": "comparison.comparison",
    "Components": "matrix.components",
    "FitTest": "matrix.fit_test",
    "GammaFit": "matrix.gamma_fit",
    "GammaMarchenkoPastur": "laws.gamma_bulk",
    "LowerEnd": "matrix.lower_edge",
    "MarchenkoPastur": "laws.marchenko_pastur",
    "MatrixReport": "report.matrix_report",
    "Metrics": "matrix.metrics",
    "NoiseFit": "matrix.noise_fit",
    "NoiseVariance": "matrix.noise_variance",
    "Plan": "planning.plan",
    "RankDecision": "matrix.rank",
    "Report": "report.report",
    "RmtspecError": "errors",
    "RoundingNoise": "matrix.rounding",
    "RuleComparison": "report.compare_rules",
    "Spectrum": "matrix.spectrum",
    "SpectrumEstimate": "matrix.spectrum_estimate",
    "SplitFactors": "matrix.split",
    "TracyWidom": "laws.tracy_widom",
    "Traps": "matrix.traps",
    "Unfrozen": "report.unfreeze",
    "analyze": "report.matrix_report",
    "analyze_checkpoint": "runs.analyze",
    "analyze_many": "report.many",
    "below_bulk": "matrix.lower_edge",
    "bema": "matrix.bema",
    "choose_rank": "matrix.rank",
    "compare": "comparison.compare",
    "compare_rules": "report.compare_rules",
    "components": "matrix.components",
    "correlation_traps": "matrix.traps",
    "extract_lora": "runs.extract_lora",
    "estimate_spectrum": "matrix.estimate_spectrum",
    "fit_gamma": "matrix.gamma_fit",
    "fit_noise": "matrix.noise",
    "fit_test": "matrix.fit_test",
    "merge_checkpoint": "runs.merge",
    "noise_variance": "matrix.noise_variance",
    "prune_checkpoint": "runs.prune",
    "resize_lora": "runs.resize_lora",
    "rounding_noise": "matrix.rounding",
    "spectrum": "matrix.spectrum",
    "split": "matrix.split",
    "unfreeze": "report.unfreeze",
}
_MODULES = ("checkpoint", "ensembles", "errors", "laws", "plot", "reproduce", "terms")

__all__ = sorted([*_HOME, *_MODULES])


def __getattr__(name: str) -> object:
    if name in _HOME:
        value = getattr(import_module(f"rmtspec.{_HOME[name]}"), name)
    elif name in _MODULES:
        value = import_module(f"rmtspec.{name}")
    else:
        raise AttributeError(f"module 'rmtspec' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
