"""Reference values of the Marchenko-Pastur law by quadrature in 40 digits.

Run ``python tests/reference/make_marchenko_pastur.py``; it writes marchenko_pastur.json next to
itself. It imports nothing of ours and shares no formula with the library: the density is
integrated, with x = a + (b - a) sin(t)^2, from the nearer edge to a point that is exactly a double.
The integrand 2 sin^2 t cos^2 t (b - a)^2 / (2 pi c x) is analytic but, near ratio 1, peaked at
|1 - sqrt c|: the path is cut at powers of ten of that width, then Gauss-Legendre on every piece.
"""

import json
from pathlib import Path

import mpmath as mp

mp.mp.dps = 40

RATIOS = [1e-6, 1e-4, 0.01, 0.03, 0.1, 0.25, 0.5, 0.784, 0.9, 0.999, 1 - 1e-9, 1.0]
RATIOS += [1 + 1e-9, 1.001, 1.1, 1.5, 3.0, 10.0, 1e3, 1e6]
STEPS = [1e-12, 1e-9, 1e-6, 1e-3, 0.03, 0.1, 0.3, 0.45]
TAILS = [1e-12, 1e-6, 0.01, 0.2, 0.5]


def edges(c):
    """Return the edges of the bulk at variance 1."""
    root = mp.sqrt(mp.mpf(c))
    return (1 - root) ** 2, (1 + root) ** 2


def bulk_integral(c, start, stop):
    """Integrate the density over a + (b - a) sin(t)^2 for t from `start` to `stop`."""
    c = mp.mpf(c)
    a, b = edges(c)
    width = b - a

    def integrand(t):
        s = mp.sin(t) ** 2
        return s * mp.cos(t) ** 2 * width**2 / (mp.pi * c * (a + width * s))

    bend = mp.sqrt(a / width)
    cuts = [start, stop]
    if bend < 1:
        decades = range(int(mp.floor(mp.log10(bend))) - 1, 1) if bend > 0 else []
        cuts += [mp.mpf(10) ** k * m for k in decades for m in (1, 2, 4)]
    cuts = sorted(t for t in set(cuts) if start <= t <= stop)
    return mp.quad(integrand, cuts, method="gauss-legendre")


def angle(near, far):
    """Return t with sin(t)^2 = near / (near + far)."""
    return mp.atan2(mp.sqrt(near), mp.sqrt(far))


def tails(c, x):
    """Return cdf and sf at x, each from its own edge."""
    a, b = edges(c)
    t = angle(x - a, b - x)
    below = bulk_integral(c, mp.mpf(0), t)
    above = bulk_integral(c, t, mp.pi / 2)
    bulk = min(mp.mpf(1), 1 / mp.mpf(c))
    if abs(below + above - bulk) > bulk * mp.mpf(10) ** -28:
        raise ArithmeticError(f"the density does not integrate to the bulk: {c}, {x}")
    return 1 - bulk + below, above


def density(c, x):
    """Return the density of the bulk at x."""
    a, b = edges(c)
    return mp.sqrt((b - x) * (x - a)) / (2 * mp.pi * mp.mpf(c) * x)


def quantile(c, share, upper):
    """Return the x that cuts off exactly `share` of the whole law on its own side, in the bulk."""
    a, b = edges(c)
    share = mp.mpf(share)
    if not upper:
        share -= 1 - min(mp.mpf(1), 1 / mp.mpf(c))

    def excess(distance):
        if upper:
            return bulk_integral(c, mp.pi / 2 - distance, mp.pi / 2) - share
        return bulk_integral(c, mp.mpf(0), distance) - share

    low, high = mp.mpf(10) ** -20, mp.pi / 2
    for _ in range(30):  # on the logarithm: a start from which the secant method cannot leave
        middle = mp.sqrt(low * high)
        if excess(middle) < 0:
            low = middle
        else:
            high = middle
    distance = mp.findroot(excess, (low, high), solver="secant", tol=1e-60, verify=False)
    if abs(excess(distance)) > share * mp.mpf(10) ** -30:
        raise ArithmeticError(f"no quantile found: {c}, {share}, {upper}")
    near = (b - a) * mp.sin(distance) ** 2
    return b - near if upper else a + near


def points(c):
    """Return doubles strictly inside the bulk, at STEPS of the width from either edge."""
    a, b = edges(c)
    found = set()
    for step in STEPS:
        for x in (a + (b - a) * mp.mpf(step), b - (b - a) * mp.mpf(step)):
            if a < mp.mpf(float(x)) < b:
                found.add(float(x))
    return sorted(found)


def digits(value):
    """Return 25 digits, as text."""
    return mp.nstr(value, 25)


def main():
    """Write the table."""
    rows, quantiles = [], []
    for c in RATIOS:
        for x in points(c):
            below, above = tails(c, mp.mpf(x))
            rows.append([c, x, digits(below), digits(above), digits(density(c, mp.mpf(x)))])
        weight = min(1.0, 1.0 / c)
        for tail in TAILS:
            for upper in (False, True):
                share = float(tail * weight if upper else (1.0 - weight) + tail * weight)
                if upper or mp.mpf(share) > 1 - 1 / mp.mpf(c):
                    quantiles.append([c, share, upper, digits(quantile(c, share, upper))])
    table = {
        "made by": "make_marchenko_pastur.py",
        "digits": mp.mp.dps,
        "points": {"columns": ["ratio", "x", "cdf", "sf", "pdf"], "rows": rows},
        "quantiles": {"columns": ["ratio", "share", "upper", "x"], "rows": quantiles},
    }
    text = json.dumps(table).replace("[[", "[\n[").replace("], [", "],\n[")
    Path(__file__).with_name("marchenko_pastur.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
