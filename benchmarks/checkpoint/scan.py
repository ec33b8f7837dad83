"""A scan compared with the linear algebra it needs: time, peak memory, two processes.

    python benchmarks/checkpoint/scan.py [FOLDER] [--include RE] [--rounds 3] [--out scan.json]

Without FOLDER, the checkpoint of synthetic.py (1.5 GB) is made in a temporary folder and deleted
afterwards. Each run is a fresh process with one BLAS thread; the files are in the page cache:

- bare: each matrix is mapped, converted to float64 in blocks, dsyrk, eigvalsh; no checks, no law,
  no report, and it is told where the matrices are;
- scan: `rmtspec.analyze_checkpoint`, from the path to the report, including its imports;
- the same scan with two processes of one thread each.

bare and scan alternate, and the shortest time of each counts. The exit status is 1 if a limit is
missed.
"""

import argparse
import contextlib
import json
import math
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

#: Limits of the time relative to the bare algebra, and of the speed-up by two processes.
RATIO_LIMIT, SPEEDUP_LIMIT = 1.15, 1.6
_BLOCK_BYTES = 2**24
_SAMPLE_SECONDS = 0.05
_ONE_THREAD = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL")}


def memory_limit(side: int) -> float:
    """Return the bytes that a scan may need if its largest smaller side is `side`."""
    return 0.5e9 + 4 * 8 * side**2


# The parts that run in the fresh processes.


def bare(request: dict[str, Any]) -> dict[str, Any]:
    """Read and solve every matrix, and nothing else."""
    import ml_dtypes
    from scipy.linalg import eigvalsh
    from scipy.linalg.blas import dsyrk

    def gram(W: np.ndarray) -> np.ndarray:
        side, tall = min(W.shape), W.shape[0] >= W.shape[1]
        product = np.zeros((side, side), order="F")
        step = max(1, _BLOCK_BYTES // (8 * side))
        for start in range(0, max(W.shape), step):
            part = W[start : start + step] if tall else W[:, start : start + step]
            block = part.astype(np.float64)
            product = dsyrk(1.0, block.T, beta=1.0, c=product, trans=not tall, overwrite_c=1)
        return product

    def work() -> dict[str, list[float]]:
        found = {}
        for name, file, begin, shape in request["matrices"]:
            W = np.memmap(file, ml_dtypes.bfloat16, mode="r", offset=begin, shape=tuple(shape))
            values = eigvalsh(
                gram(W), lower=False, overwrite_a=True, check_finite=False, driver="evd"
            )
            found[name] = [float(values.sum()), float(values[-1])]
        return found

    return timed(work)


def scan(request: dict[str, Any]) -> dict[str, Any]:
    """Analyse the checkpoint."""

    def work() -> dict[str, list[float]]:
        from rmtspec import analyze_checkpoint

        report = analyze_checkpoint(
            request["folder"], include=request["include"], n_jobs=request["jobs"], threads=1
        )
        squares = {
            name: m.spectrum.eigenvalues * m.spectrum.n for name, m in report.matrices.items()
        }
        return {name: [float(values.sum()), float(values[-1])] for name, values in squares.items()}

    return timed(work)


def timed(work: Callable[[], dict[str, list[float]]]) -> dict[str, Any]:
    """Return the result of the work, its seconds, and the peak memory of this process."""
    wall, cpu = time.perf_counter(), time.process_time()
    found = work()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    unit = 1 if sys.platform == "darwin" else 1024
    maxrss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return {"seconds": wall, "cpu_seconds": cpu, "maxrss": maxrss, "found": found} | status("self")


def status(process: str | int) -> dict[str, int]:
    """Return the resident memory of a process in bytes by kind; empty if there is no /proc."""
    with contextlib.suppress(OSError):
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
        fields = dict(line.split(":", 1) for line in lines if ":" in line)
        keys = ("VmHWM", "RssAnon", "RssFile")
        return {key: int(fields[key].split()[0]) * 1024 for key in keys if key in fields}
    return {}


# The parent.


def run(what: str, request: dict[str, Any]) -> dict[str, Any]:
    """Do `what` in a fresh process; return its measurements, and its largest resident memory."""
    before = os.getloadavg()[0]
    with tempfile.TemporaryFile("w+") as told:
        json.dump(request, told)
        told.seek(0)
        process = subprocess.Popen(
            [sys.executable, __file__, "--worker", what],
            stdin=told,
            stdout=subprocess.PIPE,
            env={**os.environ, **_ONE_THREAD},
        )
        fullest: dict[str, int] = {}
        while process.poll() is None:
            now = status(process.pid)
            if sum_of(now) > sum_of(fullest):
                fullest = now
            time.sleep(_SAMPLE_SECONDS)
    if process.returncode:
        raise SystemExit(f"{what} failed with status {process.returncode}")
    measured = json.loads(process.stdout.read())
    measured["fullest"] = {key: fullest.get(key) for key in ("RssAnon", "RssFile")}
    measured["load"] = [round(before, 2), round(os.getloadavg()[0], 2)]
    return measured


def sum_of(memory: dict[str, int]) -> int:
    """Return the total of what `status` returned."""
    return memory.get("RssAnon", 0) + memory.get("RssFile", 0)


def measure(folder: Path, include: str | None, rounds: int, jobs: int) -> dict[str, Any]:
    """Return all measurements on a checkpoint."""
    matrices = chosen(folder, include)
    for file in sorted({file for _, file, _, _ in matrices}):
        read_once(Path(file))
    request = {"matrices": matrices, "folder": str(folder), "include": include, "jobs": 1}
    plan = {"bare": ("bare", request), "scan": ("scan", request)}
    if jobs > 1:
        plan[f"scan_{jobs}_jobs"] = ("scan", {**request, "jobs": jobs})
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in plan}
    for number in range(rounds):
        order = list(plan) if number % 2 == 0 else list(plan)[::-1]
        for name in order:
            runs[name].append(run(*plan[name]))
            last = runs[name][-1]
            print(f"round {number + 1}: {name:<12} {last['seconds']:9.2f} s  load {last['load']}")
    compare(runs["bare"][0].pop("found"), [r.pop("found", None) for n in runs for r in runs[n]])
    seconds = {name: min(r["seconds"] for r in runs[name]) for name in runs}
    cpu = {name: min(r["cpu_seconds"] for r in runs[name]) for name in ("bare", "scan")}
    # ru_maxrss of a process starts from that of its parent; VmHWM does not.
    peak = max(r.get("VmHWM", r["maxrss"]) for r in runs["scan"])
    fullest = max((r["fullest"] for r in runs["scan"]), key=lambda m: sum_of(known(m)))
    side = max(min(shape) for *_, shape in matrices)
    result = {
        "checkpoint": described(folder, matrices, include),
        "seconds": seconds,
        "cpu_seconds": cpu,
        "ratio": seconds["scan"] / seconds["bare"],
        "ratio_cpu": cpu["scan"] / cpu["bare"],
        "memory": {"peak": peak, "limit": memory_limit(side), **fullest},
        "limits": {"ratio": RATIO_LIMIT, "speedup": SPEEDUP_LIMIT},
        "runs": runs,
        "conditions": conditions(rounds),
    }
    if jobs > 1:
        result["jobs"] = jobs
        result["speedup"] = seconds["scan"] / seconds[f"scan_{jobs}_jobs"]
    return result


def chosen(folder: Path, include: str | None) -> list[tuple[str, str, int, tuple[int, int]]]:
    """Return name, file, first byte and sides of the matrices of a bf16 checkpoint."""
    from rmtspec.checkpoint import matrices_in
    from rmtspec.planning.selection import Selection

    listed = Selection(include).choose(matrices_in(folder).matrices)[0]
    if not listed or any(m.tensor.dtype != "BF16" or m.part for m in listed.values()):
        raise SystemExit("expected whole matrices in bf16 and nothing else: use synthetic.py")
    return [(name, m.tensor.path, m.tensor.begin, m.sides) for name, m in listed.items()]


def read_once(file: Path) -> None:
    """Bring a file into the page cache."""
    with file.open("rb") as stream:
        while stream.read(_BLOCK_BYTES):
            pass


def compare(expected: dict[str, list[float]], others: list[dict[str, list[float]] | None]) -> None:
    """Raise if the sums or the largest eigenvalues of two runs differ."""
    for found in filter(None, others):
        for name, values in expected.items():
            if not np.allclose(found[name], values, rtol=1e-10, atol=0):
                raise SystemExit(f"{name}: {found[name]} is not {values}: other matrices?")


def described(folder: Path, matrices: list[Any], include: str | None) -> dict[str, Any]:
    """Describe the checkpoint."""
    counts: dict[tuple[int, int], int] = {}
    for *_, shape in matrices:
        counts[shape] = counts.get(shape, 0) + 1
    return {
        "files": len(list(folder.glob("*.safetensors"))),
        "file_bytes": sum(file.stat().st_size for file in folder.glob("*.safetensors")),
        "include": include,
        "bytes": sum(2 * math.prod(shape) for *_, shape in matrices),
        "dtype": "BF16",
        "matrices": len(matrices),
        "shapes": [[count, list(shape)] for shape, count in sorted(counts.items())],
    }


def conditions(rounds: int) -> dict[str, Any]:
    """Return the machine, its packages and its load."""
    import scipy.linalg.blas  # noqa: F401  to have its BLAS listed
    from threadpoolctl import threadpool_info

    from rmtspec._records import versions

    names = ("internal_api", "version", "architecture", "threading_layer")
    return {
        "processor": processor(),
        "system": platform.system(),
        "cores": os.cpu_count(),
        "blas": [
            {key: pool.get(key) for key in names}
            for pool in threadpool_info()
            if pool["user_api"] == "blas"
        ],
        "versions": versions(),
        "threads": 1,
        "rounds": rounds,
        "load": [round(load, 2) for load in os.getloadavg()],
    }


def processor() -> str:
    """Return the name of the processor, if the system tells it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def known(memory: dict[str, int | None]) -> dict[str, int]:
    """Return the entries that are not None."""
    return {key: value for key, value in memory.items() if value is not None}


def lines(result: dict[str, Any]) -> Iterator[tuple[str, str, str, bool]]:
    """Yield each measured quantity, its value, its limit, and whether it is within the limit."""
    seconds, memory, ratio = result["seconds"], result["memory"], result["ratio"]
    peak, most = memory["peak"], memory["limit"]
    yield "bare algebra", f"{seconds['bare']:.2f} s", "", True
    yield "scan", f"{seconds['scan']:.2f} s", "", True
    yield "scan / bare", f"{ratio:.3f}", f"at most {RATIO_LIMIT}", ratio <= RATIO_LIMIT
    yield "the same in processor time", f"{result['ratio_cpu']:.3f}", "", True
    yield "peak memory of the scan", gb(peak), f"at most {gb(most)}", peak <= most
    if memory["RssAnon"] is not None:
        yield "  its own, at its largest", gb(memory["RssAnon"]), "", True
        yield "  mapped files", gb(memory["RssFile"]), "", True
    if "speedup" in result:
        jobs, speedup = result["jobs"], result["speedup"]
        kept = speedup >= SPEEDUP_LIMIT
        yield f"scan, {jobs} processes", f"{seconds[f'scan_{jobs}_jobs']:.2f} s", "", True
        yield f"{jobs} processes / 1", f"{speedup:.2f}", f"at least {SPEEDUP_LIMIT}", kept


def gb(size: float) -> str:
    """Return a size as text."""
    return f"{size / 1e9:.2f} GB"


def main() -> int:
    """Measure, print, write; return 1 if a limit is missed."""
    if sys.argv[1:2] == ["--worker"]:
        work = {"bare": bare, "scan": scan}[sys.argv[2]]
        print(json.dumps(work(json.load(sys.stdin))))
        return 0
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", nargs="?", type=Path, help="a bf16 checkpoint; made if left out")
    parser.add_argument("--gb", type=float, default=1.5, help="size of the one that is made")
    parser.add_argument("--include", metavar="RE", help="only matrices whose names match")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each (default: 3)")
    parser.add_argument("--jobs", type=int, default=2, help="processes to compare with 1; 1: none")
    parser.add_argument("--limit", action=argparse.BooleanOptionalAction, default=True,
                        help="whether a missed limit is an error")  # fmt: skip
    parser.add_argument("--out", type=Path, help="write all measurements here, as JSON")
    given = parser.parse_args()
    with contextlib.ExitStack() as stack:
        folder = given.folder
        if folder is None:
            from synthetic import make_checkpoint

            folder = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "checkpoint"
            make_checkpoint(folder, given.gb)
        result = measure(folder, given.include, given.rounds, given.jobs)
    model = result["checkpoint"]
    loads = [load for runs in result["runs"].values() for run in runs for load in run["load"]]
    print(f"\n{model['matrices']} matrices, {model['bytes']:,} bytes in bf16, one BLAS thread each")
    print(f"load average {min(loads)} to {max(loads)} on {os.cpu_count()} cores")
    good = True
    for what, value, limit, kept in lines(result):
        good &= kept
        print(f"  {what:<28} {value:>10}  {limit}{'' if kept else '  MISSED'}".rstrip())
    if "speedup" in result:
        print(f"  (the last line is meaningful only if {given.jobs} cores are free)")
    if given.out is not None:
        given.out.parent.mkdir(parents=True, exist_ok=True)
        given.out.write_text(json.dumps(result, indent=1) + "\n", "utf-8")
    return 0 if good or not given.limit else 1


if __name__ == "__main__":
    sys.exit(main())
