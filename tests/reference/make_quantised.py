"""Write tests/reference/quantised/: small quantised layers, and what their libraries make of them.

Each file has the tensors of a layer and, under "dense:" and its name, the weight as the library
dequantises it; its metadata have the config.json. On a CPU, with torch 2.13 and transformers 5.23:

pip install bitsandbytes==0.50.2 compressed-tensors==0.20.0 loguru
pip download --no-deps --no-binary :all: gptqmodel==7.7.0 autoawq==0.2.9  # and unpack both
python tests/reference/make_quantised.py FOLDER_OF_THE_TWO
"""

import ast
import json
import math
import sys
import types
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file

OUT = Path(__file__).with_name("quantised")
ROWS, COLUMNS = 64, 96


def weight(*shape, seed=0):
    return torch.tensor(np.random.default_rng(seed).standard_normal(shape), dtype=torch.float32)


def write(case, tensors, dense, config):
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    tensors |= {f"dense:{name}": tensor.contiguous() for name, tensor in dense.items()}
    save_file(tensors, OUT / f"{case}.safetensors", {"config": json.dumps(config)})


def functions_of(file, namespace):
    """Return the functions of a module without its imports, which need a GPU's packages."""
    nodes = [n for n in ast.parse(file.read_text()).body if isinstance(n, ast.FunctionDef)]
    for node in nodes:
        node.decorator_list, node.returns = [], None
        for arg in (*node.args.args, *node.args.kwonlyargs):
            arg.annotation = None
    exec(compile(ast.Module(nodes, []), str(file), "exec"), namespace)
    return types.SimpleNamespace(**namespace)


def gptq(source):
    (file,) = source.glob("gptqmodel-*/gptqmodel/utils/model_dequant.py")
    known = {"torch": torch, "safe_open": safe_open, "defaultdict": defaultdict, "Path": Path,
             "PLANAR_BITS": (5, 6, 7), "LOG": types.SimpleNamespace(debug=lambda *_: None),
             "Dict": dict}  # fmt: skip
    library = functions_of(file, known)
    generator = torch.Generator().manual_seed(1)
    for bits, kind, reordered in (
        (4, "gptq", True), (4, "gptq_v2", False), (8, "gptq", False), (3, "gptq", True),
        (2, "gptq_v2", True),
    ):  # fmt: skip
        size, groups = 32, COLUMNS // 32
        codes = torch.randint(0, 2**bits, (COLUMNS, ROWS), generator=generator)
        zeros = torch.randint(0, 2**bits, (groups, ROWS), generator=generator)
        order = torch.arange(COLUMNS, dtype=torch.int32) // size
        if reordered:
            order = order[torch.randperm(COLUMNS, generator=generator)]
        packed = {"pack_dtype": torch.int32}
        tensors = {
            "fc.qweight": library.pack_cols(codes.T.contiguous(), bits, **packed).T,
            "fc.qzeros": library.pack_cols(zeros, bits, **packed),
            "fc.scales": torch.rand((groups, ROWS), generator=generator).half(),
            "fc.g_idx": order,
        }
        options = {"quant_method": "gptq", "bits": bits, "group_size": size, "sym": False,
                   "desc_act": reordered, "checkpoint_format": kind}  # fmt: skip
        place = OUT / "tmp.safetensors"
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, place)
        dense = library.convert_gptq_file(place, torch.float32, options, "cpu")
        place.unlink()
        write(f"gptq_{bits}_{kind}", tensors, dense, {"quantization_config": options})


def awq(source):
    (file,) = source.glob("autoawq-*/awq/utils/packing_utils.py")
    order = [0, 4, 1, 5, 2, 6, 3, 7]
    library = functions_of(file, {"torch": torch, "AWQ_REVERSE_ORDER": order})
    generator = torch.Generator().manual_seed(2)
    limits, words = (-(2**31), 2**31), ROWS // 8
    shapes = {"fc.qweight": (COLUMNS, words), "fc.qzeros": (COLUMNS // 32, words)}
    tensors = {
        name: torch.randint(*limits, shape, generator=generator).to(torch.int32)
        for name, shape in shapes.items()
    }
    tensors["fc.scales"] = torch.rand((COLUMNS // 32, ROWS), generator=generator).half()
    dense = library.dequantize_gemm(*tensors.values(), 4, 32).T
    options = {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True,
               "version": "gemm"}  # fmt: skip
    write("awq", tensors, {"fc.weight": dense}, {"quantization_config": options})


def bitsandbytes():
    from bitsandbytes import functional

    for case, kind, nested, dtype in (
        ("nf4", "nf4", True, torch.bfloat16), ("nf4_plain", "nf4", False, torch.float32),
        ("fp4", "fp4", True, torch.float16),
    ):  # fmt: skip
        W = weight(63, 50).to(dtype)  # the last block is not full
        if nested:
            W = weight(300, 64, seed=3).to(dtype)  # 300 scales: two blocks of them
        packed, state = functional.quantize_4bit(W, quant_type=kind, compress_statistics=nested)
        tensors = {"fc.weight": packed}
        tensors |= {f"fc.weight.{k}": v for k, v in state.as_dict(packed=True).items()}
        dense = functional.dequantize_4bit(packed, state)
        options = {"quant_method": "bitsandbytes", "load_in_4bit": True}
        write(f"bnb_{case}", tensors, {"fc.weight": dense}, {"quantization_config": options})
    codes, largest, _ = functional.int8_vectorwise_quant(weight(ROWS, COLUMNS).half())
    dense = functional.int8_vectorwise_dequant(codes, largest)
    order = torch.zeros((), dtype=torch.uint8)
    tensors = {"fc.weight": codes, "fc.SCB": largest, "fc.weight_format": order}
    options = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    write("bnb_int8", tensors, {"fc.weight": dense}, {"quantization_config": options})


def transformers():
    from transformers.integrations.finegrained_fp8 import _dequantize_fp8_weight
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    float8, name = torch.float8_e4m3fn, "fc.weight"
    exponents = torch.arange(6, dtype=torch.uint8).reshape(2, 3) + 125
    for case, shape, scales, block in (
        ("block", (70, COLUMNS), torch.rand(3, 3), [32, 32]),
        ("exponents", (ROWS, COLUMNS), exponents.view(torch.float8_e8m0fnu), [32, 32]),
        ("tensor", (ROWS, COLUMNS), torch.tensor(0.37), None),
        ("stack", (3, ROWS, COLUMNS), torch.rand(3, 2, 3), [32, 32]),
    ):
        W = weight(*shape, seed=4).to(float8)
        if len(shape) == 3:
            name = "mlp.experts.down_proj"
        dense = _dequantize_fp8_weight(W, scales, block, torch.float32)
        options = {"quant_method": "fp8", "weight_block_size": block}
        tensors = {name: W, f"{name}_scale_inv": scales}
        if case == "tensor":
            tensors["fc.input_scale"] = torch.ones(())  # of the inputs of the layer
        write(f"fp8_{case}", tensors, {name: dense}, {"quantization_config": options})
    generator = torch.Generator().manual_seed(5)
    pairs = torch.randint(0, 256, (2, 64, 3, 16), generator=generator).to(torch.uint8)
    scales = torch.randint(115, 135, (2, 64, 3), generator=generator).to(torch.uint8)
    dense = convert_moe_packed_tensors(pairs, scales)
    name = "model.layers.0.mlp.experts.gate_up_proj"
    config = {"model_type": "gpt_oss", "hidden_size": 96, "intermediate_size": 32,
              "quantization_config": {"quant_method": "mxfp4"}}  # fmt: skip
    write("mxfp4", {f"{name}_blocks": pairs, f"{name}_scales": scales}, {name: dense}, config)


def compressed():
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    group = {"strategy": "group", "group_size": 32}
    for case, kind, more in (
        ("int4", "pack-quantized", {"num_bits": 4, **group}),
        ("int4_zeros", "pack-quantized", {"num_bits": 4, "symmetric": False, **group}),
        ("int8_packed", "pack-quantized", {"num_bits": 8, "strategy": "channel"}),
        ("int3_zeros", "pack-quantized", {"num_bits": 3, "symmetric": False, **group}),
        ("int8", "int-quantized", {"num_bits": 8, "strategy": "channel"}),
        ("int8_zeros", "naive-quantized", {"num_bits": 8, "symmetric": False, **group}),
        ("float8", "float-quantized", {"num_bits": 8, "type": "float", "strategy": "channel"}),
        ("float8_block", "float-quantized", {"num_bits": 8, "type": "float", "strategy": "block",
                                             "block_structure": [32, 32]}),
        ("mxfp8", "mxfp8-quantized", {"num_bits": 8, "type": "float", **group,
                                      "scale_dtype": torch.uint8}),
        ("mxfp4", "mxfp4-pack-quantized", {"num_bits": 4, "type": "float", **group,
                                           "scale_dtype": torch.uint8}),
        ("nvfp4", "nvfp4-pack-quantized", {"num_bits": 4, "type": "float", "group_size": 16,
                                           "strategy": "tensor_group"}),
    ):  # fmt: skip
        args = QuantizationArgs(**more)
        scheme = QuantizationScheme(targets=["Linear"], weights=args)
        W = weight(ROWS, COLUMNS, seed=6).to(torch.bfloat16)
        library = BaseCompressor.get_value_from_registry(kind)
        held = {"weight": W, **parameters(W, args)}
        packed = library.compress(held, scheme)
        dense = library.decompress(dict(packed), scheme)["weight"]
        weights = args.model_dump(mode="json")
        options = {
            "quant_method": "compressed-tensors",
            "format": kind,
            "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
        }
        tensors = {f"fc.{name}": tensor.data for name, tensor in packed.items()}
        write(f"ct_{case}", tensors, {"fc.weight": dense}, {"quantization_config": options})


def parameters(W, args):
    """Return scales, and zero points, that fit the entries."""
    block = {"group": (1, args.group_size), "tensor_group": (1, args.group_size),
             "channel": (1, COLUMNS), "block": tuple(args.block_structure or ())}  # fmt: skip
    height, width = block[args.strategy]
    blocks = W.float().reshape(ROWS // height, height, COLUMNS // width, width)
    low, high = blocks.amin((1, 3)).clamp(max=0), blocks.amax((1, 3)).clamp(min=0)
    most = {4: 6.0, 8: 448.0}[args.num_bits] if args.type == "float" else 2 ** (args.num_bits - 1)
    if not args.symmetric:
        scale = ((high - low) / (2**args.num_bits - 1)).bfloat16()
        zeros = (-(2 ** (args.num_bits - 1)) - low / scale).round().to(torch.int8)
        return {"weight_scale": scale, "weight_zero_point": zeros}
    scale = torch.maximum(high, -low) / most
    if args.scale_dtype == torch.uint8:
        return {"weight_scale": torch.exp2(scale.log2().round())}
    if args.strategy == "tensor_group":
        whole = torch.tensor([448.0 / float(scale.max())])
        scale = (scale * whole).to(torch.float8_e4m3fn).float()
        return {"weight_scale": scale, "weight_global_scale": whole}
    return {"weight_scale": scale.bfloat16()}


if __name__ == "__main__":
    OUT.mkdir(exist_ok=True)
    torch.manual_seed(0)
    gptq(Path(sys.argv[1]))
    awq(Path(sys.argv[1]))
    bitsandbytes()
    transformers()
    compressed()
    size = sum(file.stat().st_size for file in OUT.iterdir())
    sys.stdout.write(f"{len(list(OUT.iterdir()))} files, {math.ceil(size / 1024)} KiB\n")
