"""Make tracy_widom.json: the Tracy-Widom laws by Painleve II, independent of the library's table.

    python tests/reference/make_tracy_widom.py        (mpmath; a few minutes)

q'' = t q + 2 q^3 with q ~ Ai at infinity (Hastings, McLeod), integrated with Taylor steps in
PRECISION digits from START, where q and Ai agree to e^(-4/3 START^1.5) ~ 1e-146, down to t = -28:

    log F2(t) = -integral of (x - t) q(x)^2,  E(t) = integral of q,  both over (t, inf)
    F1 = sqrt(F2) exp(-E / 2)    F4(t / sqrt 2) = sqrt(F2) cosh(E / 2)

Errors grow by about e^(0.94 |t|^1.5) ~ 1e61 on the way, far less than the digits carried.
Quantiles are solved by Newton inside a Taylor step. No determinant, no quadrature, no series of
ours. Written as repr of the double nearest to the value, with the argument an exact double.
"""

import json
from pathlib import Path

import mpmath as mp

TARGET = Path(__file__).with_name("tracy_widom.json")
PRECISION = 230
START = 40
STEP = mp.mpf(1) / 4
ORDER = 110
LEFT_END = -28
PROBABILITIES = (
    1e-300, 1e-100, 1e-20, 1e-10, 1e-6, 1e-4, 0.001, 0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5,
    0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 0.999, 0.9999, 0.999999,
)  # fmt: skip
UPPER_PROBABILITIES = (1e-4, 1e-8, 1e-12, 1e-16, 1e-20, 1e-50)


class State:
    """At one t: q, q', E = integral of q, u = integral of q^2, logF2, all over (t, inf)."""

    def __init__(self, t, q, dq, integral, square, log_f2):
        self.t, self.q, self.dq = t, q, dq
        self.integral, self.square, self.log_f2 = integral, square, log_f2

    def taylor(self):
        """Return the Taylor coefficients about t of q, q^2."""
        q, squares = [self.q, self.dq], []
        for k in range(ORDER - 1):
            squares.append(mp.fdot((q[i], q[k - i]) for i in range(k + 1)))
            cube = mp.fdot((squares[i], q[k - i]) for i in range(k + 1))
            linear = self.t * q[k] + (q[k - 1] if k else 0)
            q.append((linear + 2 * cube) / ((k + 1) * (k + 2)))
        return q, squares

    def moved(self, h, series):
        q, squares = series
        value = mp.polyval(q[::-1], h)
        slope = mp.polyval([k * c for k, c in enumerate(q)][:0:-1], h)
        first = mp.polyval([c / (k + 1) for k, c in enumerate(q)][::-1], h) * h
        once = mp.polyval([c / (k + 1) for k, c in enumerate(squares)][::-1], h) * h
        twice = mp.polyval([c / ((k + 1) * (k + 2)) for k, c in enumerate(squares)][::-1], h)
        # (log F2)' = u and u' = -q^2
        log_f2 = self.log_f2 + self.square * h - twice * h * h
        return State(self.t + h, value, slope, self.integral - first, self.square - once, log_f2)

    def laws(self):
        """Return, per beta, log F and its derivative in t, and log(1 - F)."""
        half, e, root = self.log_f2 / 2, mp.exp(-self.integral), mp.mpf(1) / 2
        log1 = half - self.integral / 2
        log4 = half + self.integral / 2 + mp.log((1 + e) / 2)
        slopes = {
            1: self.square / 2 + self.q / 2,
            2: self.square,
            4: self.square / 2 - self.q * root * (1 - e) / (1 + e),
        }
        logs = {1: log1, 2: self.log_f2, 4: log4}
        return {b: (logs[b], slopes[b], log_complement(logs[b])) for b in logs}


def log_complement(log_f):
    """Return log(1 - exp(log_f)) with the digits of the smaller of the two."""
    return mp.log(-mp.expm1(log_f)) if log_f > -1 else mp.log1p(-mp.exp(log_f))


def start():
    t = mp.mpf(START)
    a, da = mp.airyai(t), mp.airyai(t, derivative=1)
    square = da * da - t * a * a
    log_f2 = -(2 * t * t * a * a - 2 * t * da * da - a * da) / 3
    integral = mp.mpf(1) / 3 - mp.airyai(t, derivative=-1)
    return State(t, a, da, integral, square, log_f2)


def scale(beta):
    return mp.sqrt(2) if beta == 4 else mp.mpf(1)


def solve(state, series, beta, target, upper):
    """Return the s in this Taylor step with log F (or log(1 - F)) equal to `target`."""
    h = -STEP / 2
    for _ in range(60):
        log_f, slope, log_sf = state.moved(h, series).laws()[beta]
        if upper:
            slope = -slope * mp.exp(log_f - log_sf)
        step = ((log_sf if upper else log_f) - target) / slope
        h -= step
        if abs(step) < mp.mpf(10) ** -40:
            return (state.t + h) / scale(beta)
    raise RuntimeError("Newton does not end")


def main():
    mp.mp.dps = PRECISION
    here = start()
    values = {beta: [] for beta in (1, 2, 4)}
    quantiles = {beta: [] for beta in (1, 2, 4)}
    wanted = [(p, False) for p in PROBABILITIES] + [(p, True) for p in UPPER_PROBABILITIES]
    targets = {key: mp.log(mp.mpf(key[0])) for key in wanted}
    while here.t > LEFT_END:
        series = here.taylor()
        then = here.moved(-STEP, series)
        before, after = here.laws(), then.laws()
        for beta in values:
            for (p, upper), target in targets.items():
                k = 2 if upper else 0
                low, high = sorted((before[beta][k], after[beta][k]))
                if low <= target < high:
                    x = solve(here, series, beta, target, upper)
                    quantiles[beta].append({"p": p, "upper": upper, "x": float(x)})
            low, high = (mp.ceil(8 * y / scale(beta)) for y in (then.t, here.t))
            for eighth in range(int(low), int(high)):
                s = mp.mpf(eighth) / 8
                if eighth % (2 if -6 <= s <= 6 else 4 if s <= 14 else 16):
                    continue
                found = here.moved(s * scale(beta) - here.t, series).laws()[beta]
                log_f, slope, log_sf = found
                row = {
                    "x": float(s),
                    "cdf": float(mp.exp(log_f)),
                    "sf": float(mp.exp(log_sf)),
                    "pdf": float(slope * scale(beta) * mp.exp(log_f)),
                    "logcdf": float(log_f),
                    "logsf": float(log_sf),
                }
                values[beta].append(row)
        here = then
    for beta in values:
        if len(quantiles[beta]) != len(wanted):
            raise RuntimeError(f"beta = {beta}: {len(quantiles[beta])} quantiles")
    document = {
        "made_by": "tests/reference/make_tracy_widom.py",
        "values": {str(b): sorted(rows, key=lambda r: r["x"]) for b, rows in values.items()},
        "quantiles": {str(b): rows for b, rows in quantiles.items()},
    }
    lines = json.dumps(document).replace("}, {", "},\n{").replace("[{", "[\n{")
    TARGET.write_text(lines + "\n")


if __name__ == "__main__":
    main()
