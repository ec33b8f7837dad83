"""Spectra whose bulk is exactly the law's and whose spikes are known, and plans made from them."""

import numpy as np

from rmtspec import MarchenkoPastur, Spectrum
from rmtspec.planning.options import PlanOptions
from rmtspec.planning.plan import make_plan
from rmtspec.planning.target import Target
from rmtspec.report.many import report_on_many


def planted(n, p, *spikes):
    """Return a spectrum of an n x p matrix: quantiles of the law, and spikes above them."""
    law = MarchenkoPastur(p / n)
    bulk = law.ppf((np.arange(p - len(spikes)) + 0.5) / (p - len(spikes)))
    return Spectrum(np.append(bulk, spikes), n=n)


def target(name, shape, **more):
    return Target(**{"layer": name, "kind": "linear", "shape": shape, "itemsize": 4, **more})


def targets_of(matrices, more):
    """Return a target for each matrix; `more` has further fields, by name."""
    return {name: target(name, m.shape, **more.get(name, {})) for name, m in matrices.items()}


def planned(matrices, more=None, curves=None, **options):
    """Return the plan for matrices (arrays or spectra) with options by name, without a gate."""
    gate = {} if "fit_cutoff" in options else {"gate": None}
    asked = PlanOptions.of({**gate, **options})
    report = report_on_many(matrices, asked.analysis, 1, None)
    return make_plan(report, targets_of(matrices, more or {}), asked, curves)
