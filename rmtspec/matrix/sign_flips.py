"""Random sign flips of a noise matrix: how large its largest singular value is by chance.

If the entries of E are independent and symmetric about 0, E and |E| with random signs have the same
law, whatever the variance of each entry and however heavy its tails (Hong, Sheng and Dobriban,
"Selecting the number of components in PCA via random signflips", 2020).
"""

import functools
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from rmtspec._checks import Float64Array
from rmtspec._kernels.equalize import flip_signs, top_eigenvalue
from rmtspec._lapack import eigvalsh
from rmtspec.laws.tracy_widom import TracyWidom
from rmtspec.matrix.small_symmetric import stacked_eigvalsh

Float32Array = NDArray[np.float32]

#: The levels down to this one come from the order of the draws, exactly.
_BY_ORDER = 0.05
#: Draws for levels below it, from mean + factor * sd: one more draw of a Tracy-Widom law exceeds
#: that with probability beta at the factor tabulated. Finite matrices have a longer upper tail, for
#: which the factor is raised by a share (without it, 0.015 at 0.01 on average over eleven kinds of
#: noise, 300 x 200).
_DRAWS, _FACTORS, _LONGER = 20, {(9, 0.01): 3.37, (19, 0.01): 2.878, (20, 0.01): 2.869}, 1.08
_SIMULATED = 400_000
#: Up to this smaller side, or for tall matrices, the Gram matrix is cheaper than products with E.
_SMALL, _TALL = 256, 3.0
#: Up to this smaller side, the spectra of flips are found in one call.
_STACKED = 128
_SETTLED = 1e-6
_MOST_STEPS = 400


def n_draws(beta: float) -> int:
    """Return how many flips a threshold of this level takes.

    From 0.05 on the fewest, up to 19, for which beta is a multiple of 1 / (draws + 1).
    """
    if beta < _BY_ORDER:
        return _DRAWS
    whole = (d for d in range(9, _DRAWS) if abs(beta * (d + 1) - round(beta * (d + 1))) < 1e-9)
    return next(whole, _DRAWS - 1)


def threshold_of(tops: list[float], beta: float) -> float:
    """Return what one more draw of the same law exceeds with chance `beta`, by the draws so far.

    One more of B + 1 exchangeable draws is among the j largest with chance j / (B + 1), whatever
    their law: down to 0.05 the threshold is the j-th largest draw (between two of them, in
    proportion). Below that there are too few draws, and it is their mean and a multiple of their
    standard deviation.
    """
    ordered = np.sort(tops)[::-1]
    draws = len(ordered)
    place = beta * (draws + 1) - 1.0
    if place >= -1e-9:
        return float(np.interp(place, np.arange(draws), ordered))
    deviation = float(np.std(ordered, ddof=1))
    factor = _LONGER * prediction_factor(draws, beta)
    return max(float(ordered[0]), float(np.mean(ordered)) + factor * deviation)


@functools.cache
def prediction_factor(draws: int, beta: float) -> float:
    """Return c such that one more draw exceeds mean + c sd of `draws` draws with chance `beta`."""
    known = _FACTORS.get((draws, beta))
    return simulated_factor(draws, beta) if known is None else known


def simulated_factor(draws: int, beta: float, *, seed: int = 0) -> float:
    """Return the prediction factor from simulated sets of Tracy-Widom draws."""
    return float(np.quantile(_ratios(draws, seed), 1.0 - beta))


@functools.lru_cache(maxsize=4)
def _ratios(draws: int, seed: int) -> Float64Array:
    """Return how far one more draw is from the mean of the others, in their deviations."""
    generator = np.random.default_rng(seed)
    levels = (np.arange(1 << 16) + 0.5) / (1 << 16)
    table = TracyWidom(1).ppf(levels)
    values = np.interp(generator.random((_SIMULATED, draws + 1)), levels, table)
    before, after = values[:, :draws], values[:, draws]
    ratios: Float64Array = (after - before.mean(axis=1)) / before.std(axis=1, ddof=1)
    return ratios


def flips(
    residual: Float32Array, k: int, draws: int, generator: np.random.Generator
) -> Iterator[Float32Array]:
    """Yield `residual`, of shape (n, p), with random signs, without k random rows and columns.

    The columns are zeros, which leave the other singular values as they are. All flips are in one
    buffer: use each before the next one is made.
    """
    n, p = residual.shape
    out = np.empty((n - k, p), dtype=np.float32)
    words = (n - k) * -(-p // 32)
    rows, columns = np.arange(n), np.ones((1, p), dtype=np.float32)
    for _ in range(draws):
        if k:
            rows = np.flatnonzero(_without(k, n, generator))
            columns[0] = _without(k, p, generator)
        bits = generator.integers(0, 1 << 32, words, dtype=np.uint32)
        flip_signs(residual, rows, columns, bits, out=out)
        yield out


def stacked_flips(
    residual: Float32Array, k: int, draws: int, generator: np.random.Generator
) -> Float32Array:
    """Return what `flips` yields, of shape (draws, n - k, p), made in one call."""
    n, p = residual.shape
    words = (n - k) * -(-p // 32)
    rows, columns = np.empty((draws, n - k), np.intp), np.ones((draws, p), np.float32)
    if k:
        bits = np.empty((draws, words), np.uint32)
        for draw in range(draws):
            rows[draw] = np.flatnonzero(_without(k, n, generator))
            columns[draw] = _without(k, p, generator)
            bits[draw] = generator.integers(0, 1 << 32, words, dtype=np.uint32)
    else:
        rows[:] = np.arange(n)
        bits = generator.integers(0, 1 << 32, (draws, words), dtype=np.uint32)
    out = np.empty((draws * (n - k), p), dtype=np.float32)
    flip_signs(residual, rows.ravel(), columns, bits.ravel(), out=out)
    return out.reshape(draws, n - k, p)


def _without(k: int, size: int, generator: np.random.Generator) -> Float32Array:
    """Return `size` ones, of which k random ones are 0."""
    kept = np.ones(size, dtype=np.float32)
    kept[generator.choice(size, k, replace=False, shuffle=False)] = 0.0
    return kept


def largest_square(matrix: Float32Array) -> float:
    """Return the square of the largest singular value, to about 1e-6 of itself.

    Lanczos on the Gram matrix without reorthogonalisation, which finds the largest value as well,
    with products in float32.
    """
    from scipy.linalg import eigvalsh_tridiagonal

    n, p = matrix.shape
    start = _start(p)
    if p <= _SMALL or n >= _TALL * p:
        return float(top_eigenvalue(matrix.T @ matrix, start, _SETTLED))
    vector = start.astype(np.float32)
    before = np.zeros_like(vector)
    alphas: list[float] = []
    betas: list[float] = []
    top = 0.0
    for step in range(1, _MOST_STEPS + 1):
        image = matrix @ vector
        following = image @ matrix
        alpha = float(np.dot(image, image))
        following -= np.float32(alpha) * vector
        if betas:
            following -= np.float32(betas[-1]) * before
        alphas.append(alpha)
        if step % 6 == 0:
            last = (step - 1, step - 1)
            now = float(eigvalsh_tridiagonal(
                np.array(alphas), np.array(betas), select="i", select_range=last,
                check_finite=False,
            )[0])  # fmt: skip
            if now - top <= _SETTLED * now:
                return now
            top = now
        beta = float(np.linalg.norm(following))
        if beta <= 1e-6 * alpha:
            break
        betas.append(beta)
        before, vector = vector, np.asarray(following / np.float32(beta), dtype=np.float32)
    values = eigvalsh_tridiagonal(np.array(alphas), np.array(betas[: len(alphas) - 1]))
    return float(values[-1])


@functools.lru_cache(maxsize=8)
def _start(p: int) -> Float64Array:
    """Return a random unit vector, always the same."""
    vector: Float64Array = np.random.default_rng(0).standard_normal(p)
    vector /= np.linalg.norm(vector)
    vector.setflags(write=False)
    return vector


def flipped_spectra(
    residual: Float32Array, k: int, draws: int, generator: np.random.Generator
) -> Float64Array:
    """Return the squares of the p - k largest singular values of each of `flips`, ascending.

    Those of small matrices are found in one call.

    Returns
    -------
    ndarray of shape (draws, p - k)
    """
    size = residual.shape[1] - k
    if residual.shape[1] > _STACKED:
        made = flips(residual, k, draws, generator)
        return np.vstack([flipped_spectrum(flip, size) for flip in made])
    if residual.size > _STACKED**2:
        grams = np.array([flip.T @ flip for flip in flips(residual, k, draws, generator)])
    else:
        stack = stacked_flips(residual, k, draws, generator)
        grams = np.matmul(stack.transpose(0, 2, 1), stack)
    # Ascending: those of the zero columns come first.
    values = stacked_eigvalsh(grams.astype(np.float64))
    return np.maximum(values[:, values.shape[1] - size :], 0.0)


def flipped_spectrum(matrix: Float32Array, size: int) -> Float64Array:
    """Return the squares of the `size` largest singular values of a flip, ascending."""
    from scipy.linalg import LinAlgError

    gram = matrix.T @ matrix
    kept = gram.diagonal() > 0.0
    if not kept.all():
        gram = gram[np.ix_(kept, kept)]
    try:
        values = eigvalsh(gram)
    except LinAlgError:  # the float32 solver failed
        wide = matrix[:, kept].astype(np.float64)
        values = eigvalsh(wide.T @ wide, overwrite=True)
    squares = np.zeros(size)
    squares[size - len(values) :] = np.maximum(values, 0.0)
    return squares
