"""Memory and time of `rmtspec prune FOLDER OUT --calibration TEXT`, one block at a time.

    python benchmarks/compression/streaming.py [--layers 24] [--sequences 32] [--folder PLACE]

Writes results/streaming.json: for a synthetic Llama in float32 (hidden 1024, MLP 2816, vocabulary
32,000, head not tied; 1.5 GB with 24 layers), the peak of the resident memory above what the same
command takes for a model of 0.4 MB, where it is reached, and the seconds; and for a smaller Llama
how far moments, ranks and products of the factors are from those of the route in memory.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
VOCABULARY = 32_000
LARGE = {"hidden_size": 1024, "intermediate_size": 2816, "num_attention_heads": 16}
SMALLER = {"hidden_size": 256, "intermediate_size": 704, "num_attention_heads": 4}
TINY = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}


def make_folder(folder, layers, sides, vocabulary=VOCABULARY):
    """Write a Llama with random weights in shards, one a block, and a tokenizer of whole words."""
    import torch
    import transformers
    from safetensors.torch import save_file
    from tokenizers import Tokenizer, models, pre_tokenizers

    folder.mkdir()
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(vocabulary)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(folder)
    config = transformers.LlamaConfig(
        **sides, num_hidden_layers=layers, vocab_size=vocabulary, tie_word_embeddings=False,
        bos_token_id=0, eos_token_id=1, dtype="float32", architectures=["LlamaForCausalLM"],
    )  # fmt: skip
    config.save_pretrained(folder)
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(config)
    generator = torch.Generator().manual_seed(0)
    shards = {}
    for name, parameter in model.named_parameters():
        parts = name.split(".")
        shards.setdefault(parts[2] if parts[1] == "layers" else parts[-2], {})[name] = parameter
    index, size = {}, 0
    for number, of in enumerate(shards.values(), 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        tensors = {}
        for name, parameter in of.items():
            if parameter.ndim == 1:
                tensors[name] = torch.ones(parameter.shape)
            else:
                spread = parameter.shape[1] ** -0.5
                tensors[name] = spread * torch.randn(parameter.shape, generator=generator)
            index[name] = file
            size += tensors[name].nbytes
        save_file(tensors, folder / file, metadata={"format": "pt"})
    content = {"metadata": {"total_size": size}, "weight_map": index}
    (folder / "model.safetensors.index.json").write_text(json.dumps(content))
    return size


def make_text(file, tokens, vocabulary=VOCABULARY):
    """Write words drawn by Zipf's law."""
    drawn = random.Random(0)
    weights = [1.0 / (rank + 10) for rank in range(vocabulary)]
    words = drawn.choices(range(vocabulary), weights=weights, k=tokens)
    file.write_text(" ".join(f"w{word}" for word in words))


def child(arguments):
    """Run the command in this process, and print its memory as JSON."""
    peaks, over = {"RssAnon": 0, "RssFile": 0, "VmRSS": 0}, threading.Event()

    def sample():
        while not over.wait(0.02):
            for line in Path("/proc/self/status").read_text().splitlines():
                name, _, value = line.partition(":")
                if name in peaks:
                    peaks[name] = max(peaks[name], int(value.split()[0]) * 1024)

    watcher = threading.Thread(target=sample)
    watcher.start()
    start = time.perf_counter()
    from rmtspec.cli import main

    try:
        main(arguments, standalone_mode=False)
    finally:
        over.set()
        watcher.join()
    status = Path("/proc/self/status").read_text()
    most = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    found = {"peak": int(most.split()[1]) * 1024, "seconds": time.perf_counter() - start, **peaks}
    print("MEMORY " + json.dumps(found))


def command(*arguments):
    """Run the command in a process of its own; return its memory and time."""
    words = [sys.executable, __file__, "--child", *map(str, arguments)]
    done = subprocess.run(words, capture_output=True, text=True, env=os.environ, check=False)
    if done.returncode:
        raise SystemExit(done.stdout + done.stderr)
    line = next(x for x in done.stdout.splitlines() if x.startswith("MEMORY "))
    print(line, flush=True)
    return json.loads(line.removeprefix("MEMORY "))


def compare(place, sequences):
    """Return how far the command is from the route in memory, on a smaller model."""
    import numpy as np
    import transformers

    from rmtspec.adapters import torch as rt
    from rmtspec.adapters.torch._calibration.folder import _batches, calibrate_folder
    from rmtspec.checkpoint import matrices_in
    from rmtspec.runs.merge import merge_checkpoint

    folder, text = place / "smaller", place / "smaller.txt"
    make_folder(folder, 4, SMALLER, vocabulary=1000)
    make_text(text, 512 * sequences + 10, vocabulary=1000)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    memory = rt.calibrate(model, _batches(folder, text, sequences, 512))
    streamed = calibrate_folder(folder, text, sequences=sequences)
    found = {}
    for part in ("input_moments", "held_out", "output_weights"):
        ours, theirs = getattr(streamed, part), getattr(memory, part)
        found[part] = max(
            float(np.abs(a - b).max() / np.abs(b).max())
            for name in theirs
            for a, b in zip(ours[name], theirs[name], strict=True)
        )
    command("prune", folder, place / "few", "--calibration", text, "--sequences", sequences,
            "--budget", 0.8)  # fmt: skip
    merge_checkpoint(place / "few", place / "dense")
    pruned, report = rt.prune(model, calibration=memory, budget=0.8)
    weights = rt.merge(pruned).state_dict()
    files = matrices_in(place / "dense").tensors
    manifest = json.loads((place / "few" / "rmtspec.json").read_text())
    written = {entry["name"]: entry["rank"] for entry in manifest["splits"]}
    cut = {row["name"]: row["rank"] for row in report.rows if row["action"] in ("split", "narrow")}
    worst = 0.0
    for name in cut:
        expected = weights[f"{name}.weight"].numpy()
        gap = np.linalg.norm(files[f"{name}.weight"]() - expected) / np.linalg.norm(expected)
        worst = max(worst, float(gap))
    return {
        "model": {**SMALLER, "layers": 4}, "largest relative difference": found,
        "cut": len(cut), "same ranks": written == cut,
        "largest relative difference of the weights": worst,
    }  # fmt: skip


def main():
    """Measure and write the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--sequences", type=int, default=32)
    parser.add_argument("--folder", type=Path, help="keep the model here, or take it from here")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        folder = asked.folder or place / "large"
        if not folder.exists():
            make_folder(folder, asked.layers, LARGE)
        size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
        make_text(place / "text.txt", 512 * asked.sequences + 10)
        make_folder(place / "tiny", 2, TINY, vocabulary=1000)
        common = ("--budget", 0.8, "--calibration", place / "text.txt")
        least = command("prune", place / "tiny", place / "tiny-out", *common, "--sequences", 2)
        most = command("prune", folder, place / "out", *common, "--sequences", asked.sequences)
        left = [file.name for file in place.iterdir() if file.name.startswith(".")]
        record = {
            "model": {**LARGE, "layers": asked.layers, "bytes": size, "dtype": "float32"},
            "sequences": asked.sequences,
            "threads": os.environ.get("OMP_NUM_THREADS"),
            "tiny model": least,
            "model itself": most,
            "peak above the tiny model": most["peak"] - least["peak"],
            "share of the model": (most["peak"] - least["peak"]) / size,
            "hidden folders left": left,
            "against the route in memory": compare(place, 8),
        }
    print(json.dumps(record, indent=2))
    (HERE / "results" / "streaming.json").write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2:])
    else:
        main()
