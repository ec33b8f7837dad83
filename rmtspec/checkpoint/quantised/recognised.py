"""Which tensors of a checkpoint are quantised weights, by their names and its config."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import NamedTuple

from rmtspec.checkpoint.quantised import awq, bitsandbytes, compressed, fp8, gptq, mxfp4
from rmtspec.checkpoint.quantised.layout import Layout
from rmtspec.checkpoint.quantised.scheme import Scheme
from rmtspec.checkpoint.quantised.tensor import QuantisedTensor
from rmtspec.checkpoint.stored import StoredTensor
from rmtspec.errors import FileError
from rmtspec.terms import Why

_Tensors = Mapping[str, StoredTensor]
#: The dtypes of codes; those of indices and masks are others.
_CODES = ("U8", "I8", "I16", "I32", "U16", "U32", "F8_E4M3", "F8_E5M2")
_BUFFER = re.compile(r"(bias|mask|ids|index)$")
_UNKNOWN = "this layout is not known here; dequantise it with the library that wrote it"
_NO_CONFIG = "no quantization_config in a config.json beside it says how; copy that file too"
_TAKEN = "there is a tensor {name!r} already"


class Recognised(NamedTuple):
    """The tensors of a checkpoint with each quantised weight as one, and what could not be read.

    `refused` has why a tensor of a quantised layer is not read, by its name.
    """

    tensors: dict[str, StoredTensor]
    refused: dict[str, str]


class _Layer(NamedTuple):
    """Tensors that are one weight, if they fit."""

    weight: str
    method: str
    members: tuple[str, ...]
    layout: Callable[[], Layout]
    turned: bool = False


def recognised(tensors: dict[str, StoredTensor], scheme: Scheme) -> Recognised:
    """Return the tensors with the quantised weights among them dequantised when they are read."""
    made: dict[str, QuantisedTensor] = {}  # by the name of each tensor that it takes the place of
    refused: dict[str, str] = {}
    for layer in _layers(tensors, scheme):
        taken = layer.weight in tensors and layer.weight not in layer.members
        try:
            if taken:
                raise FileError(_TAKEN.format(name=layer.weight))
            weight = QuantisedTensor.of(layer.weight, layer.layout(), turned=layer.turned)
        except FileError as error:
            reason = Why.NOT_DEQUANTISED.words(method=layer.method, what=error)
            refused |= dict.fromkeys(layer.members, reason)
        else:
            made |= dict.fromkeys(layer.members, weight)
    refused |= _unknown({n: t for n, t in tensors.items() if n not in {*made, *refused}}, scheme)
    found: dict[str, StoredTensor] = {}
    for name, tensor in tensors.items():
        weight_of = made.get(name)
        found[name if weight_of is None else weight_of.name] = weight_of or tensor
    return Recognised(found, refused)


def _layers(tensors: _Tensors, scheme: Scheme) -> Iterator[_Layer]:
    """Yield the layers that look quantised by their names."""
    for name, tensor in tensors.items():
        layer, _, last = name.rpartition(".")
        if last == "qweight":
            yield _of_words(layer, tensors, scheme)
        elif last == "weight_packed" and scheme.method == "compressed-tensors":
            yield _of_compressed(layer, tensors, scheme)
        elif bitsandbytes.STATE in name:
            yield _of_four_bits(name, tensors, scheme)
        elif last == "SCB":
            yield _of_int8(layer, tensors, scheme)
        elif name.endswith("_blocks") and tensor.dtype == "U8":
            base = name.removesuffix("_blocks")
            yield _Layer(
                base,
                "MXFP4",
                _present(tensors, base, mxfp4.MEMBERS),
                partial(mxfp4.layout_of, base, tensors, scheme),
                turned=True,
            )
        elif last == "weight" and _plain_codes(name, tensors, scheme):
            yield _of_compressed(layer, tensors, scheme)
        elif scheme.method in fp8.METHODS and fp8.is_float8(tensor):
            ends = ("", *fp8.SCALES, *fp8.HELPERS[:1])
            members = _present(tensors, name, ends) + _present(tensors, layer, fp8.HELPERS[1:])
            yield _Layer(name, "FP8", members, partial(fp8.layout_of, name, tensors, scheme))


def _of_words(layer: str, tensors: _Tensors, scheme: Scheme) -> _Layer:
    """Return a layer with a qweight, as GPTQ and AWQ have it and a few others."""
    known = {"gptq": gptq.layout_of, "awq": awq.layout_of}.get(scheme.method)
    method = scheme.method.upper() if known else scheme.method or "GPTQ or AWQ"
    members = _present(tensors, layer, gptq.MEMBERS)

    def layout() -> Layout:
        if known is None:
            raise FileError(_UNKNOWN if scheme.method else _NO_CONFIG)
        return known(layer, tensors, scheme)

    return _Layer(f"{layer}.weight", method, members, layout, turned=scheme.turns(layer))


def _of_compressed(layer: str, tensors: _Tensors, scheme: Scheme) -> _Layer:
    members = _present(tensors, layer, (*compressed.MEMBERS, *compressed.HELPERS))
    return _Layer(
        f"{layer}.weight", "compressed-tensors", members,
        partial(compressed.layout_of, layer, tensors, scheme),
    )  # fmt: skip


def _of_four_bits(state: str, tensors: _Tensors, scheme: Scheme) -> _Layer:
    name = state.partition(bitsandbytes.STATE)[0]
    members = (*_present(tensors, name, ("", *bitsandbytes.MEMBERS)), state)
    return _Layer(
        name, "bitsandbytes", members,
        partial(bitsandbytes.four_bits_of, name, tensors, scheme, state),
        turned=scheme.turns(name.removesuffix(".weight")),
    )  # fmt: skip


def _of_int8(layer: str, tensors: _Tensors, scheme: Scheme) -> _Layer:
    ends = (".weight", bitsandbytes.SCALES, bitsandbytes.ORDER)
    return _Layer(
        f"{layer}.weight", "bitsandbytes int8", _present(tensors, layer, ends),
        partial(bitsandbytes.int8_of, layer, tensors, scheme), turned=scheme.turns(layer),
    )  # fmt: skip


def _plain_codes(name: str, tensors: _Tensors, scheme: Scheme) -> bool:
    """Tell whether a weight is one of compressed-tensors with a byte for each entry."""
    packed = f"{name}_packed" in tensors
    codes = tensors[name].dtype in ("I8", "F8_E4M3", "F8_E5M2")
    return codes and not packed and scheme.method == "compressed-tensors"


def _present(tensors: _Tensors, base: str, ends: Iterable[str]) -> tuple[str, ...]:
    return tuple(base + end for end in ends if base + end in tensors)


def _unknown(tensors: _Tensors, scheme: Scheme) -> dict[str, str]:
    """Return why tensors are not read that belong to layers with codes of no known layout."""
    if not scheme.method:
        return {}
    layers = {
        name.rpartition(".")[0]
        for name, tensor in tensors.items()
        if tensor.dtype in _CODES and len(tensor.shape) > 1 and not _BUFFER.search(name)
    }
    reason = Why.NOT_DEQUANTISED.words(method=scheme.method, what=_UNKNOWN)
    return {name: reason for name in tensors if name.rpartition(".")[0] in layers}
