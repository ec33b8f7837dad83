"""What counts as a weight matrix: names, kinds, values, views, or the reason why it does not."""

import copy
import pickle

import ml_dtypes
import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal
from torch import nn
from torch.ao import quantization
from torch.nn.utils import parametrizations, prune
from transformers import pytorch_utils

import rmtspec
from rmtspec.adapters import torch as rt
from rmtspec.errors import InvalidTypeError, InvalidValueError, RmtspecWarning

#: torch's own words on its old interfaces, which must still be recognised.
OLD = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def readable(model):
    return {name: matrix for name, matrix in rt.weight_matrices(model) if not matrix.reason}


def reasons(model):
    return {name: matrix.reason for name, matrix in rt.weight_matrices(model) if matrix.reason}


def names(model):
    return list(readable(model))


def assert_holds(model, expected):
    """The readable matrices are `expected`, in order, in name and value; their shapes are true."""
    matrices = readable(model)
    assert list(matrices) == list(expected)
    for name, values in expected.items():
        assert matrices[name].shape == matrices[name]().shape
        assert_array_equal(matrices[name](), values.detach().numpy(), err_msg=name)


def assert_writes(model):
    """What is written into each matrix is read back, and every other parameter stays."""
    model = copy.deepcopy(model)
    for name, matrix in readable(model).items():
        before = {key: value.clone() for key, value in model.state_dict().items()}
        new = np.arange(np.prod(matrix.shape), dtype=np.float64).reshape(matrix.shape)
        matrix.write(new)
        assert_array_equal(readable(model)[name](), new, err_msg=name)
        changed = sum(
            int((value != before[key]).sum()) for key, value in model.state_dict().items()
        )
        assert changed <= new.size
        for key, value in model.state_dict().items():
            assert key == matrix.key or torch.equal(value, before[key])


# ---------------------------------------------------------------------------- layers


def test_linear_with_and_without_bias():
    model = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 5, bias=False))
    assert_holds(model, {"0": model[0].weight, "2": model[2].weight})
    assert [m.kind for m in readable(model).values()] == ["linear", "linear"]
    assert reasons(model) == {"0.bias": "1 dimension: a vector has no spectrum"}
    assert_writes(model)
    pair = next(rt.weight_matrices(model))
    assert (pair.name, pair.kind, pair.shape, pair.reason) == ("0", "linear", (4, 6), "")
    assert pair.matrix.names == ("0", "0.weight")
    assert "parameter=" not in repr(pair.matrix)


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("groups", [1, 2])
def test_convolution_per_group(dims, groups):
    family = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
    layer = family(4, 6, 3, groups=groups, dilation=2, stride=2)
    each = 6 // groups
    flat = layer.weight.reshape(6, -1)
    expected = {
        "0" if groups == 1 else f"0[{g}]": flat[g * each : (g + 1) * each] for g in range(groups)
    }
    model = nn.Sequential(layer)
    assert_holds(model, expected)
    assert {m.kind for m in readable(model).values()} == {f"conv{dims}d"}
    assert next(iter(readable(model).values())).shape == (each, 4 // groups * 3**dims)
    assert not any(m.unsplittable for m in readable(model).values())
    assert_writes(model)


def test_channels_last_convolution():
    layer = nn.Conv2d(4, 6, 3).to(memory_format=torch.channels_last)
    model = nn.Sequential(layer)
    assert_holds(model, {"0": layer.weight.contiguous().reshape(6, -1)})
    assert_writes(model)
    readable(model)["0"].write(np.zeros((6, 36)))
    assert layer.weight.is_contiguous(memory_format=torch.channels_last)


def test_depthwise_convolution_has_no_spectrum():
    assert reasons(nn.Sequential(nn.Conv2d(8, 8, 3, groups=8, bias=False))) == {
        "0": "depthwise: each output has a kernel of its own, and a vector has no spectrum"
    }
    # Two outputs for each input: 2 x 9 matrices.
    assert len(readable(nn.Sequential(nn.Conv2d(8, 16, 3, groups=8)))) == 8


@pytest.mark.parametrize("groups", [1, 2])
def test_transposed_convolution(groups):
    layer = nn.ConvTranspose2d(4, 6, 3, groups=groups)
    flat = layer.weight.reshape(4, -1)  # in x (out / groups * kernel)
    each = 4 // groups
    expected = {
        "0" if groups == 1 else f"0[{g}]": flat[g * each : (g + 1) * each] for g in range(groups)
    }
    model = nn.Sequential(layer)
    assert_holds(model, expected)
    for matrix in readable(model).values():
        assert (matrix.kind, matrix.unsplittable) == ("transposed conv", "a transposed convolution")
    assert_writes(model)
    for family in (nn.ConvTranspose1d, nn.ConvTranspose3d):
        assert names(nn.Sequential(family(4, 6, 3))) == ["0"]


def test_transformers_conv1d_is_read_transposed():
    layer = pytorch_utils.Conv1D(5, 3)  # 3 -> 5; the weight is stored in x out
    model = nn.Sequential(layer)
    assert_holds(model, {"0": layer.weight.T})
    (matrix,) = readable(model).values()
    assert (matrix.kind, matrix.shape, matrix.unsplittable) == ("transposed linear", (5, 3), "")
    assert np.shares_memory(matrix(), layer.weight.detach().numpy())
    assert_writes(model)


def test_another_conv1d_of_that_name_is_unknown():
    class Conv1D(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(3, 5))

    layer = Conv1D()
    assert_holds(layer, {"(model)": layer.weight})
    assert readable(layer)["(model)"].kind == "parameter"


def test_embedding():
    model = nn.Sequential(nn.Embedding(9, 4), nn.Embedding(9, 4, max_norm=1.0))
    assert_holds(model, {"0": model[0].weight, "1": model[1].weight})
    plain, bounded = readable(model).values()
    assert (plain.kind, plain.unsplittable) == ("embedding", "")
    assert "max_norm" in bounded.unsplittable
    assert_writes(model)


def test_attention_packed():
    model = nn.Sequential(nn.MultiheadAttention(8, 2, add_bias_kv=True))
    layer = model[0]
    q, k, v = layer.in_proj_weight.chunk(3)
    assert_holds(
        model,
        {
            "0[q]": q,
            "0[k]": k,
            "0[v]": v,
            "0.bias_k[0]": layer.bias_k[0],
            "0.bias_v[0]": layer.bias_v[0],
            "0.out_proj": layer.out_proj.weight,
        },
    )
    matrices = readable(model)
    assert [m.kind for m in matrices.values()] == ["attention"] * 3 + ["parameter"] * 2 + ["linear"]
    assert all("MultiheadAttention reads" in m.unsplittable for m in matrices.values())
    assert set(reasons(model)) == {"0.in_proj_bias", "0.out_proj.bias"}
    assert_writes(model)


def test_attention_with_separate_projections():
    model = nn.Sequential(nn.MultiheadAttention(8, 2, kdim=6, vdim=5))
    layer = model[0]
    assert_holds(
        model,
        {
            "0[q]": layer.q_proj_weight,
            "0[k]": layer.k_proj_weight,
            "0[v]": layer.v_proj_weight,
            "0.out_proj": layer.out_proj.weight,
        },
    )
    assert readable(model)["0[k]"].shape == (8, 6)
    assert_writes(model)


class OwnLSTM(nn.LSTM):
    pass


@pytest.mark.parametrize(
    ("family", "gates"), [(nn.LSTM, "ifgo"), (OwnLSTM, "ifgo"), (nn.GRU, "rzn"), (nn.RNN, "")]
)
def test_recurrent_layers_per_gate(family, gates):
    layer = family(3, 4, num_layers=2, bidirectional=True)
    expected = {}
    for key, value in layer.named_parameters():
        if key.startswith("weight"):
            parts = value.chunk(len(gates)) if gates else [value]
            tails = [f"[{gate}]" for gate in gates] or [""]
            expected |= {f"{key}{tail}": part for tail, part in zip(tails, parts, strict=True)}
    assert len(expected) == 2 * 2 * 2 * max(1, len(gates))
    assert_holds(layer, expected)
    assert {m.kind for m in readable(layer).values()} == {"recurrent"}
    assert {m.layer for m in readable(layer).values()} == {"(model)"}
    assert all(m.unsplittable for m in readable(layer).values())
    assert_writes(layer)


def test_recurrent_projection_has_no_gates():
    layer = nn.LSTM(3, 6, proj_size=2)
    matrices = readable(layer)
    assert [name for name in matrices if "hr" in name] == ["weight_hr_l0"]
    assert_array_equal(matrices["weight_hr_l0"](), layer.weight_hr_l0.detach().numpy())
    assert matrices["weight_hh_l0[o]"].shape == (6, 2)
    assert_writes(layer)


@pytest.mark.parametrize(
    ("family", "gates"), [(nn.LSTMCell, "ifgo"), (nn.GRUCell, "rzn"), (nn.RNNCell, "")]
)
def test_recurrent_cells(family, gates):
    cell = family(3, 4)
    expected = {}
    for key in ("weight_ih", "weight_hh"):
        value = getattr(cell, key)
        if gates:
            parts = zip(gates, value.chunk(len(gates)), strict=True)
            expected |= {f"{key}[{gate}]": part for gate, part in parts}
        else:
            expected[key] = value
    assert_holds(cell, expected)
    assert_writes(cell)


class Experts(nn.Module):
    def __init__(self, *shape):
        super().__init__()
        self.gate_up = nn.Parameter(torch.randn(*shape))


def test_unknown_modules():
    model = nn.Sequential(Experts(3, 4, 5), Experts(4, 5), Experts(1, 4, 5), Experts(2, 3, 4, 5))
    stack = model[0].gate_up
    expected = {f"0.gate_up[{i}]": stack[i] for i in range(3)}
    expected |= {"1.gate_up": model[1].gate_up, "2.gate_up[0]": model[2].gate_up[0]}
    assert_holds(model, expected)
    kinds = [m.kind for m in readable(model).values()]
    assert kinds == ["expert"] * 3 + ["parameter"] * 2
    assert {m.unsplittable for m in readable(model).values()} == {
        "Experts reads this weight in its own forward"
    }
    (reason,) = reasons(model).values()
    assert reason == (
        "4 dimensions in a Experts, whose use is not known: say which axes are outputs, then "
        "inputs, in a dict layer.matrix_axes, under the key 'gate_up': 'h n d -> (n d) h'"
    )
    assert_writes(model)


def test_numbers_and_vectors_and_root_parameters():
    root = nn.Linear(4, 5)
    root.extra = nn.Parameter(torch.randn(3, 2))
    root.scale = nn.Parameter(torch.tensor(1.0))
    assert_holds(root, {"(model)": root.weight, "extra": root.extra})
    assert reasons(root) == {
        "bias": "1 dimension: a vector has no spectrum",
        "scale": "0 dimensions: a number has no spectrum",
    }
    # A module that holds more than its family may use what it holds.
    assert (
        readable(root)["(model)"].unsplittable == "this Linear holds more than a weight and a bias"
    )
    assert_writes(root)


def test_a_forward_of_its_own_keeps_a_layer_whole():
    class Scaled(nn.Linear):
        def forward(self, input):  # noqa: A002
            return 2 * super().forward(input)

    replaced = nn.Linear(4, 5)
    replaced.forward = lambda input: input  # noqa: A006
    matrices = readable(nn.Sequential(Scaled(4, 5), replaced))
    assert matrices["0"].unsplittable == "Scaled has a forward of its own"
    assert "replaced on the instance" in matrices["1"].unsplittable


# ---------------------------------------------------------------------------- ties


def test_tied_parameter_is_read_once():
    model = nn.ModuleDict({"table": nn.Embedding(9, 4), "head": nn.Linear(4, 9, bias=False)})
    model["head"].weight = model["table"].weight
    assert names(model) == ["table"]
    assert readable(model)["table"].tied == "tied to head.weight"
    assert reasons(model) == {"head": "tied to table.weight, analysed there"}


def test_tied_through_another_parameter_of_the_same_memory():
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    model[1].weight = nn.Parameter(model[0].weight.detach())  # a view, not the same object
    assert names(model) == ["0"]
    assert readable(model)["0"].tied == "tied to 1.weight"


def test_the_same_module_twice():
    shared = nn.Linear(4, 4)
    model = nn.ModuleDict({"a": shared, "b": nn.Linear(4, 4), "c": shared})
    assert names(model) == ["a", "b"]
    assert readable(model)["a"].tied == "tied to c.weight"
    assert readable(model)["b"].tied == ""


# ---------------------------------------------------------------------------- what cannot be read


def refuse_to_read(model, name):
    matrix = dict(rt.weight_matrices(model))[name]
    with pytest.raises(InvalidValueError) as caught:
        matrix()
    assert str(caught.value) == matrix.reason


@pytest.mark.parametrize(
    "wrap",
    [parametrizations.weight_norm, parametrizations.spectral_norm, parametrizations.orthogonal],
)
def test_parametrized_weights_and_what_they_are_made_of(wrap):
    model = nn.Sequential(wrap(nn.Linear(4, 5, bias=False)), nn.Linear(5, 6, bias=False))
    assert names(model) == ["1"]
    assert set(reasons(model)) == {"0"}
    assert "remove_parametrizations" in reasons(model)["0"]
    refuse_to_read(model, "0")
    nn.utils.parametrize.remove_parametrizations(model[0], "weight")
    assert names(model) == ["0", "1"]


def test_only_the_parametrized_weights_of_a_layer_are_skipped():
    layer = parametrizations.weight_norm(nn.LSTM(3, 4), "weight_hh_l0")
    assert names(layer) == [f"weight_ih_l0[{gate}]" for gate in "ifgo"]
    assert "parametrized" in reasons(layer)["weight_hh_l0"]


@OLD
@pytest.mark.parametrize(
    ("wrap", "undo"),
    [
        (nn.utils.weight_norm, nn.utils.remove_weight_norm),
        (nn.utils.spectral_norm, nn.utils.remove_spectral_norm),
        (
            lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
            lambda layer: prune.remove(layer, "weight"),
        ),
    ],
)
def test_old_weight_norm_spectral_norm_and_prune(wrap, undo):
    model = nn.Sequential(wrap(nn.Linear(4, 5, bias=False)))
    assert names(model) == []
    assert list(reasons(model)) == ["0"]
    assert "prune.remove first" in reasons(model)["0"]
    refuse_to_read(model, "0")
    undo(model[0])
    assert names(model) == ["0"]


@OLD
def test_old_weight_norm_of_one_weight_among_several():
    layer = nn.utils.weight_norm(nn.LSTM(3, 4, bias=False), "weight_hh_l0")
    assert names(layer) == [f"weight_ih_l0[{gate}]" for gate in "ifgo"]
    assert list(reasons(layer)) == ["weight_hh_l0"]


@pytest.mark.filterwarnings("ignore:.*torch.ao.quantization is deprecated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")
def test_quantised_modules_are_not_passed_over_in_silence():
    model = quantization.quantize_dynamic(
        nn.ModuleDict({"fc": nn.Linear(4, 5), "rnn": nn.LSTM(4, 5), "rest": nn.Conv1d(2, 3, 1)}),
        {nn.Linear, nn.LSTM},
    )
    assert names(model) == ["rest"]
    quantised = {name for name, reason in reasons(model).items() if "quantised" in reason}
    assert quantised == {"fc", "rnn"}


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")
@pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta state:UserWarning")
@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: torch.empty(5, 4, device="meta"), "meta device"),
        (lambda: torch.randn(5, 4).to_sparse(), "to_dense"),
        (lambda: torch.randn(5, 4).to_sparse_csr(), "to_dense"),
        (lambda: torch.randn(5, 4, dtype=torch.complex64), "real matrices"),
        (lambda: torch.ones(5, 4, dtype=torch.int8), "codes, not weights"),
        (lambda: torch.ones(5, 4, dtype=torch.bool), "codes, not weights"),
        (lambda: torch.quantize_per_tensor(torch.randn(5, 4), 0.1, 0, torch.qint8), "quantised"),
        (lambda: torch.zeros(5, 4).to(torch.float8_e8m0fnu), "convert it to bfloat16"),
        (lambda: torch.empty(0, 4), "empty"),
    ],
    ids=["meta", "coo", "csr", "complex", "int8", "bool", "qint8", "e8m0", "empty"],
)
def test_weights_that_cannot_be_read(make, words):
    model = nn.Sequential(nn.Linear(4, 5, bias=False), nn.Linear(5, 6, bias=False))
    model[0].weight = nn.Parameter(make(), requires_grad=False)
    assert names(model) == ["1"]
    assert words in reasons(model)["0"]
    refuse_to_read(model, "0")
    assert rt.analyze(model).skipped == [{"name": "0", "reason": reasons(model)["0"]}]


def test_tensor_subclasses_are_not_trusted():
    class Packed(torch.Tensor):
        pass

    layer = nn.Linear(4, 5, bias=False)
    layer.weight = nn.Parameter(torch.randn(5, 4).as_subclass(Packed))
    assert "tensor subclass" in reasons(layer)["(model)"]


@pytest.fixture
def gloo(tmp_path):
    """A process group of this process alone."""
    distributed = torch.distributed
    if not distributed.is_available():
        pytest.skip("torch was built without torch.distributed")
    distributed.init_process_group(
        "gloo", init_method=(tmp_path / "rendezvous").as_uri(), rank=0, world_size=1
    )
    yield
    distributed.destroy_process_group()


def test_sharded_weights(gloo):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (1,))
    model = nn.Sequential(nn.Linear(4, 5, bias=False), nn.Linear(5, 6, bias=False))
    model[0].weight = nn.Parameter(distribute_tensor(model[0].weight.detach(), mesh, [Shard(0)]))
    assert names(model) == ["1"]
    assert "full_tensor" in reasons(model)["0"]
    assert rt.analyze(model).rows[0]["name"] == "1"


def test_lazy_layers():
    model = nn.Sequential(nn.Linear(4, 5), nn.LazyLinear(3))
    with pytest.raises(InvalidValueError, match=r"'1\.weight' belongs to a lazy layer.*one batch"):
        rt.weight_matrices(model)
    model(torch.zeros(1, 4))
    assert names(model) == ["0", "1"]


# ---------------------------------------------------------------------------- dtypes, views


@pytest.mark.parametrize(
    ("dtype", "name"),
    [
        (torch.float64, "float64"),
        (torch.float32, "float32"),
        (torch.float16, "float16"),
        (torch.bfloat16, "bfloat16"),
        (torch.float8_e4m3fn, "float8_e4m3fn"),
        (torch.float8_e5m2, "float8_e5m2"),
    ],
)
def test_dtypes_are_read_as_they_are_without_a_copy(dtype, name):
    layer = nn.Linear(20, 30, bias=False)
    layer.weight = nn.Parameter(layer.weight.detach().to(dtype), requires_grad=False)
    matrix = readable(layer)["(model)"]
    values = matrix()
    assert values.dtype == np.dtype(getattr(ml_dtypes, name, name))
    assert matrix.itemsize == layer.weight.element_size()
    assert_array_equal(values.astype(np.float64), layer.weight.detach().double().numpy())
    assert values.__array_interface__["data"][0] == layer.weight.data_ptr()
    # analysed as it is read
    assert rt.analyze(layer).rows[0]["p"] == 20
    # and written back in its own dtype
    matrix.write(np.full((30, 20), 2.0))
    assert layer.weight.dtype == dtype
    assert (layer.weight.detach().double() == 2.0).all()
    matrix.write(values)  # also from an array of ml_dtypes
    assert (layer.weight.detach().double() == 2.0).all()


def test_groups_gates_and_heads_are_views_too():
    model = nn.ModuleDict(
        {
            "conv": nn.Conv2d(4, 6, 3, groups=2),
            "rnn": nn.LSTM(3, 4),
            "attn": nn.MultiheadAttention(8, 2),
            "experts": Experts(3, 4, 5),
        }
    )
    for matrix in readable(model).values():
        assert np.shares_memory(matrix(), matrix.parameter.detach().numpy())


def test_a_matrix_is_an_array_where_numpy_wants_one():
    layer = nn.Linear(4, 5)
    matrix = readable(layer)["(model)"]
    assert_array_equal(np.asarray(matrix), layer.weight.detach().numpy())
    assert np.asarray(matrix, dtype=np.float64).dtype == np.float64


def test_a_transposed_and_a_strided_weight():
    layer = nn.Linear(4, 5, bias=False)
    layer.weight = nn.Parameter(torch.randn(4, 5).T)
    assert_holds(layer, {"(model)": layer.weight})
    assert_writes(layer)
    layer.weight = nn.Parameter(torch.randn(10, 8)[::2, ::2])
    assert_holds(layer, {"(model)": layer.weight})
    assert_writes(layer)


# ---------------------------------------------------------------------------- nothing is touched


def everything():
    return nn.ModuleDict(
        {
            "fc": nn.Linear(20, 30),
            "conv": nn.Conv2d(4, 18, 3, groups=2),
            "norm": nn.BatchNorm2d(18),
            "table": nn.Embedding(40, 20),
            "attn": nn.MultiheadAttention(16, 2),
            "rnn": nn.GRU(16, 16),
            "experts": Experts(2, 16, 17),
        }
    )


def test_reading_changes_nothing_on_the_model():
    model = everything()
    model["conv"].eval()
    model["fc"].weight.requires_grad_(False)
    calls = []
    model["fc"].register_forward_hook(lambda *_: calls.append(1))
    before = {key: (value.clone(), value._version) for key, value in model.state_dict().items()}
    objects = {name: id(p) for name, p in model.named_parameters()}
    hooks = {n: [dict(v) for k, v in vars(m).items() if "hooks" in k] for n, m in
             model.named_modules()}  # fmt: skip
    modes = {name: module.training for name, module in model.named_modules()}
    state = torch.get_rng_state()

    for matrix in readable(model).values():
        matrix()
    rt.analyze(model)

    assert torch.equal(torch.get_rng_state(), state)
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key][0])
        assert value._version == before[key][1]
    assert {name: id(p) for name, p in model.named_parameters()} == objects
    assert not any(p.grad is not None for p in model.parameters())
    assert {n: [dict(v) for k, v in vars(m).items() if "hooks" in k] for n, m in
            model.named_modules()} == hooks  # fmt: skip
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert calls == []


def test_no_weight_is_read_before_it_is_asked_for(monkeypatch):
    model = everything()
    monkeypatch.setattr(torch.Tensor, "numpy", lambda *_, **__: pytest.fail("read"))
    assert len(list(rt.weight_matrices(model))) > 10


def test_straight_into_analyze_many():
    model = everything()
    report = rmtspec.analyze_many(rt.weight_matrices(model))
    assert [row["name"] for row in report.rows] == names(model)
    assert {entry["name"]: entry["reason"] for entry in report.skipped} == reasons(model)
    kinds = {row["name"]: row["kind"] for row in report.rows}
    assert kinds["fc"] == "linear"
    assert kinds["attn[q]"] == "attention"
    variance = rmtspec.analyze(model["fc"].weight.detach().numpy()).fit.variance
    assert report.row("fc")["variance"] == variance


def without_seconds(report):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in report.rows]


@pytest.mark.slow
def test_in_two_processes():
    model = everything()
    one = rmtspec.analyze_many(rt.weight_matrices(model))
    two = rmtspec.analyze_many(rt.weight_matrices(model), n_jobs=2)
    assert without_seconds(two) == without_seconds(one)
    assert two.skipped == one.skipped
    whole = rt.analyze(model)
    assert without_seconds(rt.analyze(model, n_jobs=2)) == without_seconds(whole)


def test_a_matrix_survives_pickling():
    matrix = readable(everything())["conv[1]"]
    again = pickle.loads(pickle.dumps(matrix))
    assert_array_equal(again(), matrix())
    assert (again.name, again.kind, again.shape) == (matrix.name, matrix.kind, matrix.shape)


# ---------------------------------------------------------------------------- not a plain model


def test_data_parallel():
    with pytest.raises(InvalidTypeError, match=r"wrapped in DataParallel.*Pass model\.module"):
        rt.weight_matrices(nn.DataParallel(nn.Linear(4, 5)))
    inside = nn.Sequential(nn.ReLU(), nn.DataParallel(nn.Linear(4, 5)))
    with pytest.raises(InvalidTypeError, match="wrapped at '1' in DataParallel"):
        rt.weight_matrices(inside)


def test_distributed_data_parallel(gloo):
    wrapped = nn.parallel.DistributedDataParallel(nn.Linear(4, 5))
    with pytest.raises(InvalidTypeError, match=r"in DistributedDataParallel.*Pass model\.module"):
        rt.weight_matrices(wrapped)
    assert names(wrapped.module) == ["(model)"]


def test_compiled_model():
    model = nn.Sequential(nn.Linear(4, 5))
    compiled = torch.compile(model, backend="eager")
    with pytest.raises(InvalidTypeError, match=r"in OptimizedModule.*Pass model\._orig_mod"):
        rt.weight_matrices(compiled)
    assert names(compiled._orig_mod) == ["0"]
    model.compile(backend="eager")  # in place: no wrapper
    assert names(model) == ["0"]


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_scripted_model():
    with pytest.raises(InvalidTypeError, match=r"ScriptModule.*the module it was made from"):
        rt.weight_matrices(torch.jit.script(nn.Linear(4, 5)))


@pytest.mark.parametrize("given", [np.eye(3), torch.eye(3), {"a": np.eye(3)}, nn.Linear, None, "x"])
def test_what_is_no_model(given):
    with pytest.raises(InvalidTypeError, match=r"`model` is a \w+; expected a torch\.nn\.Module"):
        rt.weight_matrices(given)
    for function in (rt.analyze, rt.plan, rt.prune, rt.merge):
        with pytest.raises(InvalidTypeError, match=r"expected a torch\.nn\.Module"):
            function(given)


def test_the_old_name_of_unsplittable_warns_and_works():
    matrix = next(m for _, m in rt.weight_matrices(nn.ConvTranspose2d(3, 4, 3)) if m.kind)
    with pytest.warns(RmtspecWarning, match="`whole` of a WeightMatrix is now called"):
        assert matrix.whole == matrix.unsplittable == "a transposed convolution"
