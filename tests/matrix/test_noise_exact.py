"""Matrices of exactly low rank: what is left of them is rounding, and not noise to be fitted."""

import numpy as np
import pytest

import rmtspec

RNG = np.random.default_rng(0)
LOW = {
    "constant": np.ones((120, 90)),
    "blocks": np.kron(np.array([[1.0, 2.0], [3.0, 4.0]]), np.ones((60, 45))),
    "signs": np.outer(RNG.choice([-1.0, 1.0], 120), RNG.choice([-1.0, 1.0], 90)),
    "product": RNG.standard_normal((120, 5)) @ RNG.standard_normal((5, 90)),
}


@pytest.mark.parametrize("model", ["auto", "equalized", "signflip"])
@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
@pytest.mark.parametrize("name", LOW)
def test_rounding_is_told_and_not_scaled_up(name, dtype, model):
    fit = rmtspec.fit_noise(LOW[name].astype(dtype), model=model)
    rank = {"blocks": 2, "product": 5}.get(name, 1)
    assert fit.verdict == "no bulk left"
    assert fit.reason == f"only rounding is left beyond rank {rank}"
    assert fit.exact
    assert fit.rounds == 1  # a second would equalize the rounding
