"""Damaged files of every format: read, or refused by an error of ours, in seconds and in bounds.

Each mutant is made from a good file by a seeded generator, so that a seed in a failure is all that
is needed to see it again.
"""

import contextlib
import functools
import io
import json
import random
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import gguf
import h5py
import msgpack
import numpy as np
import onnx
import pytest
import torch
from checkpoints import planted, write_safetensors, write_sharded
from forked import ForkedWalks
from hdf5_mutants import Hdf5Mutants, write_hdf5
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mutants import EXAMPLES, mutated_bytes, mutated_text
from safetensors import safe_open

import rmtspec
import rmtspec.adapters.onnx
from rmtspec.adapters import torch as rt
from rmtspec.adapters.torch._training.file import _content, write_training
from rmtspec.checkpoint import keras_walk, matrices_in
from rmtspec.checkpoint.manifest import Manifest
from rmtspec.errors import RmtspecError
from rmtspec.report import Report
from rmtspec.runs.journal import open_journal

#: Seconds that no damaged file may take; reading a good one takes milliseconds.
MOST_SECONDS = 5.0
#: Bytes by which the peak of the process may grow.
MOST_BYTES = 2**30
CONFIGS = [
    {"model_type": "gpt2", "n_embd": 8, "n_head": 2, "n_layer": 1},
    {"model_type": "llama", "hidden_size": 8, "num_attention_heads": 4, "num_key_value_heads": 2},
    {"model_type": "mixtral", "num_local_experts": 2, "hidden_size": 8, "intermediate_size": 8},
    {"text_config": {"model_type": "phi3", "hidden_size": 8, "num_attention_heads": 4}},
]
CORPUS = Path(__file__).parent / "corpus"
#: The first and the last kinds of structures that the library here writes.
HDF5 = ("earliest", "latest")
QUANTISED = sorted(Path(__file__).parents[1].glob("reference/quantised/*.safetensors"))
FUSED = {
    "transformer.h.0.attn.c_attn.weight": np.ones((8, 24), "<f4"),
    "model.layers.0.self_attn.qkv_proj.weight": np.ones((16, 8), "<f4"),
    "model.layers.0.mlp.gate_up_proj.weight": np.ones((16, 8), "<f4"),
    "model.layers.0.mlp.experts.gate_up_proj": np.ones((2, 8, 16), "<f4"),
}


def peak_memory():
    """Return the most bytes that this process has had; 0 where the system does not tell."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def loaded(path):
    listed = matrices_in(path)
    for matrix in listed.matrices.values():
        matrix()
    return listed


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder of good files, one folder for each kind."""
    place = tmp_path_factory.mktemp("fuzz")
    write_sharded(place / "index", {
        "m-00001-of-00002.safetensors": {"a.weight": planted(12, 8)},
        "m-00002-of-00002.safetensors": {"b.weight": planted(12, 8)},
    })  # fmt: skip
    (place / "config").mkdir()
    write_safetensors(place / "config" / "model.safetensors", FUSED)
    write_safetensors(place / "m.safetensors", {"fc.weight": planted(30, 20)})
    plan = rmtspec.prune_checkpoint(place / "m.safetensors", place / "pruned", ranks={"fc": 3})
    plan.to_json(place / "plan.json")
    rmtspec.analyze_checkpoint(place / "m.safetensors", journal=place / "j.jsonl")
    np.save(place / "w.npy", planted(12, 8))
    np.savez(place / "w.npz", a=planted(12, 8), b=planted(8, 6))
    np.savez_compressed(place / "packed.npz", a=planted(12, 8), b=np.zeros((8, 6)))
    with zipfile.ZipFile(place / "lzma.npz", "w", zipfile.ZIP_LZMA) as archive:
        stream = io.BytesIO()
        np.save(stream, planted(12, 8))
        archive.writestr("a.npy", stream.getvalue())
    state = {"fc.weight": torch.from_numpy(planted(12, 8)), "fc.bias": torch.ones(12)}
    torch.save({"epoch": 3, "model": state}, place / "m.pt")
    torch.save(state, place / "old.bin", _use_new_zipfile_serialization=False)
    model = torch.nn.Linear(6, 4)
    parts = {"model": model, "optimizer": torch.optim.Adam(model.parameters())}
    write_training(place / "training.pt", parts)
    write_gguf(place / "m.gguf")
    write_keras(place)
    for libver in HDF5:
        write_hdf5(place / f"{libver}.h5", libver)
    write_flax(place / "m.msgpack")
    write_onnx(place / "m.onnx")
    (place / "lora").mkdir()
    factors = {"fc.lora_A.weight": planted(3, 8), "fc.lora_B.weight": planted(12, 3)}
    write_safetensors(place / "lora" / "adapter_model.safetensors", factors)
    return place


def write_gguf(path):
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_array("words", ["a", "bc"])
    writer.add_tensor("a.weight", planted(6, 32).astype("f4"))
    kind = gguf.GGMLQuantizationType.Q4_0
    writer.add_tensor("b.weight", gguf.quants.quantize(planted(6, 64), kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_keras(place):
    with h5py.File(place / "m.weights.h5", "w") as file:
        for layer, own, arrays in (
            ("dense", "fc", [planted(12, 8), np.ones(8)]), ("mha/query_dense", "query",
             [planted(12, 8).reshape(12, 2, 4), np.ones((2, 4))]), ("mha", "mha", []),
        ):  # fmt: skip
            group = file.create_group(f"layers/{layer}/vars")
            group.attrs["name"] = own
            for index, array in enumerate(arrays):
                group.create_dataset(str(index), data=array, compression="gzip")
    with zipfile.ZipFile(place / "m.keras", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(place / "m.weights.h5", "model.weights.h5")


def write_flax(path):
    def packed(array):
        content = (array.shape, str(array.dtype), array.tobytes())
        return msgpack.ExtType(1, msgpack.packb(content, use_bin_type=True))

    dense = {"kernel": packed(planted(12, 8)), "bias": packed(np.ones(8))}
    path.write_bytes(msgpack.packb({"params": {"fc": dense}, "step": 3}, use_bin_type=True))


def write_onnx(path):
    helper, numpy_helper = onnx.helper, onnx.numpy_helper
    W, V = planted(8, 12).astype("f4"), planted(6, 12).astype("f4")
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "W"], ["h"], name="one"),
            helper.make_node("Relu", ["h"], ["r"]),
            helper.make_node("Gemm", ["r", "V"], ["y"], name="two", transB=1),
        ],
        "g",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", 8])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["n", 6])],
        [numpy_helper.from_array(W, "W"), numpy_helper.from_array(V, "V")],
    )
    onnx.save(helper.make_model(graph), path)


def of_bytes(name, read):
    """Return a trial of mutated bytes of a file, which `read` takes by its path."""

    def trial(place, rng):
        whole = (place / name).read_bytes()
        file = place / f"mutant-{name}"
        file.write_bytes(mutated_bytes(rng, whole))
        read(file)

    return trial


hdf5_mutants = functools.cache(Hdf5Mutants)


def structures_of_hdf5(place, rng):
    """Change what the structures of an HDF5 file say; some files are in an archive of Keras."""
    content = hdf5_mutants(place / f"{rng.choice(HDF5)}.h5").mutant(rng)
    if rng.random() < 0.1:
        content = mutated_bytes(rng, content, most=1)
    if rng.random() < 0.9:
        file = place / "mutant.h5"
        file.write_bytes(content)
    else:
        file = place / "mutant.keras"
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("model.weights.h5", content)
    loaded(file)


def an_index(place, rng):
    file = place / "index" / "model.safetensors.index.json"
    good = file.read_bytes()
    try:
        file.write_bytes(mutated_text(rng, json.loads(good)))
        loaded(place / "index")
    finally:
        file.write_bytes(good)


def a_config(place, rng):
    (place / "config" / "config.json").write_bytes(mutated_text(rng, rng.choice(CONFIGS)))
    loaded(place / "config")


def quantised(place, rng):
    """Change the config of a quantised layer, or its tensors, or both."""
    file = rng.choice(QUANTISED)
    with safe_open(file, "pt") as opened:
        config = json.loads(opened.metadata()["config"])
    folder = place / "quantised"
    folder.mkdir(exist_ok=True)
    content, choice = file.read_bytes(), rng.random()
    if choice < 0.7:
        content = mutated_bytes(rng, content)
    text = mutated_text(rng, config) if choice > 0.4 else json.dumps(config).encode()
    (folder / "model.safetensors").write_bytes(content)
    (folder / "config.json").write_bytes(text)
    for matrix in matrices_in(folder).matrices.values():
        values = matrix()
        assert values.shape == matrix.sides
        found = matrix.rounding()
        assert found is None or found[1].shape == matrix.sides
    shutil.rmtree(place / "dense", ignore_errors=True)
    rmtspec.merge_checkpoint(folder, place / "dense")


def a_manifest(place, rng):
    file = place / "pruned" / "rmtspec.json"
    good = file.read_bytes()
    try:
        file.write_bytes(mutated_text(rng, json.loads(good)))
        manifest = Manifest.read(place / "pruned")
        manifest.check_files(place / "pruned")
        manifest.tensors(place / "pruned")
    finally:
        file.write_bytes(good)


def a_plan(place, rng):
    file = place / "mutant-plan.json"
    file.write_bytes(mutated_text(rng, json.loads((place / "plan.json").read_bytes())))
    shown(Report.from_json(file))


def shown(report):
    """What is accepted can be shown in every form."""
    for word in (repr(report), report.to_csv(), report.to_html(), report.to_json()):
        assert word
    report.to_pandas()
    assert report.parameters_after >= 0


def a_journal(place, rng):
    first, *lines = (place / "j.jsonl").read_bytes().splitlines()
    header = {key: value for key, value in json.loads(first).items() if key != "crc32"}
    file = place / "mutant.jsonl"
    file.write_bytes(mutated_bytes(rng, b"\n".join([first, *lines]) + b"\n"))
    with open_journal(file, header):
        pass


def a_journal_without_checksums(place, rng):
    entries = [json.loads(line) for line in (place / "j.jsonl").read_bytes().splitlines()]
    for entry in entries:
        del entry["crc32"]
    entries[0]["schema"] = 1
    texts = [json.dumps(entry).encode() for entry in entries]
    texts[1] = mutated_text(rng, entries[1]).replace(b"\n", b"")
    file = place / "mutant.jsonl"
    file.write_bytes(b"\n".join(texts) + b"\n")
    rmtspec.analyze_checkpoint(place / "m.safetensors", journal=file)


def an_adapter_config(place, rng):
    config = {"peft_type": "LORA", "lora_alpha": 8, "alpha_pattern": {"fc": 4}, "r": 3}
    (place / "lora" / "adapter_config.json").write_bytes(mutated_text(rng, config))
    loaded(place / "lora")


def pruned_onnx(path):
    rmtspec.adapters.onnx.prune(path, ranks={"one": 2})


TRIALS = {
    "safetensors": of_bytes("m.safetensors", loaded),
    "npy": of_bytes("w.npy", loaded),
    "npz": of_bytes("w.npz", loaded),
    "npz-deflated": of_bytes("packed.npz", loaded),
    "npz-lzma": of_bytes("lzma.npz", loaded),
    "pt": of_bytes("m.pt", loaded),
    "pt-old": of_bytes("old.bin", loaded),
    "state-dict": of_bytes("m.pt", rt.read_state_dict),
    "gguf": of_bytes("m.gguf", loaded),
    "keras-h5": of_bytes("m.weights.h5", loaded),
    "keras": of_bytes("m.keras", loaded),
    "hdf5": structures_of_hdf5,
    "flax": of_bytes("m.msgpack", loaded),
    "onnx": of_bytes("m.onnx", pruned_onnx),
    "adapter-config": an_adapter_config,
    "training": of_bytes("training.pt", _content),
    "index": an_index,
    "config": a_config,
    "quantised": quantised,
    "manifest": a_manifest,
    "plan": a_plan,
    "journal": a_journal,
    "journal-1": a_journal_without_checksums,
}


def check(place, kind, seed):
    began = time.perf_counter()
    with contextlib.suppress(RmtspecError):
        TRIALS[kind](place, random.Random(seed))
    assert time.perf_counter() - began < MOST_SECONDS


FORKS = sys.platform == "linux"
#: Each of these starts a process, for Keras where `walks` cannot fork one. One in a hundred files
#: of HDF5 whose structures are damaged takes the library two seconds, and their limit ends it.
SLOWER = {"onnx": 2, "hdf5": 4}
if not FORKS:
    SLOWER |= {"keras-h5": 20, "keras": 20, "hdf5": 20}


@pytest.fixture(scope="module")
def walks(tmp_path_factory):
    """Walk the files of Keras in forks; give what runs them, or nothing."""
    if not FORKS:
        yield None
        return
    made = ForkedWalks(keras_walk.__file__, tmp_path_factory.mktemp("walks"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(keras_walk, "subprocess", made)
        yield made
    made.close()


@pytest.mark.parametrize("kind", TRIALS)
def test_damage_is_read_or_refused(place, walks, kind):
    @settings(
        max_examples=EXAMPLES // SLOWER.get(kind, 1),
        suppress_health_check=list(HealthCheck),
        database=None,
        deadline=None,
    )
    @given(st.integers(0, 2**64))
    def trials(seed):
        check(place, kind, seed)

    before = peak_memory()
    trials()
    assert peak_memory() - before < MOST_BYTES
    assert walks is None or walks.peak < MOST_BYTES


@pytest.mark.skipif(not FORKS, reason="nothing is forked here")
def test_a_fork_ends_as_a_new_process_does(place, tmp_path):
    """In what it writes and how it ends, of good files, damaged ones and those that crash."""
    forked = ForkedWalks(keras_walk.__file__, tmp_path)
    files = [place / "m.weights.h5", place / "m.keras", CORPUS / "keras-3554.h5"]
    for cut in (700, 3000):
        files.append(tmp_path / f"{cut}.h5")
        files[-1].write_bytes(files[0].read_bytes()[:cut])
    ends = set()
    for file in files:
        command = [sys.executable, "-P", keras_walk.__file__, str(file)]
        options = {"capture_output": True, "encoding": "utf-8", "check": False}
        new, fork = subprocess.run(command, **options), forked.run(command, **options)
        assert (new.returncode, new.stdout, new.stderr) == (
            fork.returncode, fork.stdout, fork.stderr
        )  # fmt: skip
        ends.add(fork.returncode)
    forked.close()
    assert min(ends) < 0 < max(ends)
    assert 0 in ends
    assert 0 < forked.peak < MOST_BYTES
