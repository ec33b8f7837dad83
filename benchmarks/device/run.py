"""All that takes `device="cuda"`, run on a GPU and held against the CPU: numbers and times.

    python benchmarks/device/run.py [--device cuda] [--small] [--blocks N] [--out FOLDER]

Writes FOLDER/NAME-OF-THE-DEVICE.json, by default beside this script. About a minute on a data
centre's GPU. The exit status is 1 if a number differs from the CPU's by more than its limit, 2 if
there is no such device. --small shows in seconds that everything runs.

- matrices: `rmtspec.spectrum` by an eigensolver on the device, eigenvalue by eigenvalue, and how
  long its stages take; beside it a Gram matrix from float32 products.
- model: `analyze`, `prune`, `merge`, `save` and `load` of a model on the device.
- training: `RMTPruner` on the device, the same batches on the CPU.
- scan: `analyze_checkpoint` of one block of a 7B model in bfloat16. With --blocks 32 also that of
  a whole one, 13 GB, on the device alone.
"""

import argparse
import functools
import json
import platform
import re
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from comparing import (
    Timed,
    conditions,
    failures,
    in_common,
    model_part,
    reading_times,
    timed,
    training_part,
)
from safetensors.torch import save_file

import rmtspec
from rmtspec.errors import InvalidOptionError

RESULTS = Path(__file__).parent / "results"
#: Largest difference of an eigenvalue from the CPU's, in units of the median one.
LIMIT = 1e-8
SHAPES = ((2048, 2048), (4096, 4096), (11008, 4096))
#: Layers of one block of a model of 7 billion parameters.
BLOCK = {
    **{f"attention.{name}": (4096, 4096) for name in ("q", "k", "v", "o")},
    "mlp.gate": (11008, 4096), "mlp.up": (11008, 4096), "mlp.down": (4096, 11008),
}  # fmt: skip
SMALLER = 16
#: What `block` made before.
MADE: dict[tuple[str, int], torch.Tensor] = {}


def matrices_part(device: str, *, small: bool) -> list[dict[str, Any]]:
    """Return for each shape the largest difference of an eigenvalue, and the times."""
    rows = []
    for shape in SHAPES:
        n, p = (side // SMALLER for side in shape) if small else shape
        W = spiked(n, p, seed=n + p)
        solver = Timed(device)
        rmtspec.spectrum(W[: p // 2], eigensolver=solver)  # libraries are loaded, kernels too
        solver.seconds.clear()
        ours, seconds = timed(lambda W=W, s=solver: rmtspec.spectrum(W, eigensolver=s), device)
        theirs, on_cpu = timed(lambda W=W: rmtspec.spectrum(W), "cpu")
        stages = dict(solver.seconds)
        row = {
            "rows": n,
            "columns": p,
            "largest_difference": difference(ours.eigenvalues, theirs.eigenvalues),
            "limit": LIMIT,
            "device_seconds": seconds,
            "cpu_seconds": on_cpu,
            "times_faster": on_cpu / seconds,
            "stages": stages | {"checks_and_copies": seconds - sum(stages.values())},
        }
        rows.append(row | {"float32_products": single_products(W, theirs.eigenvalues, device)})
        say(f"{n} x {p}: {on_cpu:.2f} s on the CPU, {seconds:.2f} s on the device")
    return rows


def single_products(W: np.ndarray, exact: np.ndarray, device: str) -> dict[str, float]:
    """Return time and error of a Gram matrix whose products are float32, added up in float64."""

    def gram() -> torch.Tensor:
        total = torch.zeros((W.shape[1],) * 2, dtype=torch.float64, device=device)
        for part in torch.from_numpy(W).to(device).split(512):
            total += part.T @ part
        return total

    gram()
    total, seconds = timed(gram, device)
    values = torch.linalg.eigvalsh(total).cpu().numpy() / len(W)
    return {"gram_seconds": seconds, "largest_difference": difference(np.sort(values), exact)}


def scan_part(device: str, *, small: bool) -> dict[str, Any]:
    """Return the times of a scan from the file to the report, on the device and on the CPU."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "model.safetensors")
        save_file(block(0, small=small), file)
        listed = rmtspec.checkpoint.matrices_in(file)
        _, reading = timed(lambda: [np.array(m()) for m in listed.matrices.values()], "cpu")
        solver = Timed(device)
        with reading_times() as read:
            by_device, seconds = timed(
                lambda: rmtspec.analyze_checkpoint(file, eigensolver=solver), device
            )
        named, by_name = timed(lambda: rmtspec.analyze_checkpoint(file, device=device), device)
        by_cpu, on_cpu = timed(lambda: rmtspec.analyze_checkpoint(file), "cpu")
    apart = max(
        difference(a.spectrum.eigenvalues, b.spectrum.eigenvalues)
        for report in (by_device, named)
        for a, b in zip(report.matrices.values(), by_cpu.matrices.values(), strict=True)
    )
    counted = [[row["n_spikes"] for row in report.rows] for report in (named, by_cpu)]
    stages = dict(solver.seconds) | {
        "reading_alone": reading,
        "reading_ahead": sum(end - begin for begin, end in read),
        "of_that_while_computing": in_common(read, solver.ran),
    }
    say(f"scan: {on_cpu:.1f} s on the CPU, {by_name:.1f} s on the device")
    return {
        "matrices": len(by_cpu.rows),
        "largest_difference": apart,
        "limit": LIMIT,
        "spikes_differ": int(counted[0] != counted[1]),
        "device_seconds": by_name,
        "cpu_seconds": on_cpu,
        "times_faster": on_cpu / by_name,
        "stages": stages | {"total": seconds},
    }


def whole_part(device: str, blocks: int, *, small: bool) -> dict[str, Any]:
    """Return the seconds of a scan of so many blocks on the device, a shard for each."""
    with tempfile.TemporaryDirectory() as folder:
        size = 0
        for index in range(blocks):
            file = Path(folder, f"model-{index + 1:05d}-of-{blocks:05d}.safetensors")
            save_file(block(index, small=small), file)
            size += file.stat().st_size
        solver = Timed(device)
        with reading_times() as read:
            report, seconds = timed(
                lambda: rmtspec.analyze_checkpoint(folder, eigensolver=solver), device
            )
    say(f"{blocks} blocks: {seconds:.1f} s on the device")
    return {
        "blocks": blocks,
        "matrices": len(report.rows),
        "bytes": size,
        "device_seconds": seconds,
        "stages": dict(solver.seconds)
        | {
            "reading_ahead": sum(end - begin for begin, end in read),
            "of_that_while_computing": in_common(read, solver.ran),
        },
    }


def block(index: int, *, small: bool) -> dict[str, torch.Tensor]:
    """Return the tensors of a block; all blocks have the same entries."""
    tensors = {}
    for seed, (name, shape) in enumerate(BLOCK.items()):
        n, p = (side // SMALLER for side in shape) if small else shape
        if (name, n) not in MADE:
            MADE[name, n] = torch.from_numpy(spiked(n, p, seed=seed)).to(torch.bfloat16)
        tensors[f"layers.{index}.{name}.weight"] = MADE[name, n].clone()
    return tensors


def spiked(n: int, p: int, seed: int) -> np.ndarray:
    """Return noise with ten spikes, float32."""
    rng = np.random.default_rng(seed)
    W = rng.standard_normal((n, p), dtype=np.float32)
    left, right = rng.standard_normal((n, 10)), rng.standard_normal((10, p))
    return W + (0.2 * left @ right).astype(np.float32)


def difference(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Return the largest difference of two spectra, in units of the median eigenvalue."""
    return float(np.abs(ours - theirs).max() / np.median(theirs))


def say(text: str) -> None:
    """Print at once, also into a log file."""
    print(text, file=sys.stderr, flush=True)


def main() -> int:
    """Run all parts, write the record and say what is wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--blocks", type=int, default=0, help="also scan so many blocks: 32 are 7B")
    parser.add_argument("--small", action="store_true", help="small matrices: does it run")
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    try:
        rmtspec.spectrum(np.eye(3), eigensolver=Timed(given.device))
    except InvalidOptionError as error:
        print(f"Nothing was run: {error}", file=sys.stderr)
        return 2
    parts: dict[str, Callable[..., Any]] = {
        "matrices": matrices_part,
        "model": model_part,
        "training": training_part,
        "scan": scan_part,
    }
    if given.blocks:
        parts["whole"] = functools.partial(whole_part, blocks=given.blocks)
    record: dict[str, Any] = {"conditions": conditions(given.device), "seconds": {}}
    for name, part in parts.items():
        started = time.perf_counter()
        try:
            record[name] = part(given.device, small=given.small)
        except Exception as error:  # the other parts are worth their numbers
            record[name] = {"error": f"{type(error).__name__}: {error}"}
        record["seconds"][name] = time.perf_counter() - started
    record["failed"] = failures(record)
    device_name = record["conditions"]["device"] or platform.machine()
    file = given.out / f"{re.sub(r'[^A-Za-z0-9]+', '-', device_name).lower()}.json"
    given.out.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(record, indent=1) + "\n", "utf-8")
    print(json.dumps(record, indent=1))
    for text in record["failed"]:
        print(f"FAILED: {text}", file=sys.stderr)
    print(file, file=sys.stderr)
    return int(bool(record["failed"]))


if __name__ == "__main__":
    sys.exit(main())
