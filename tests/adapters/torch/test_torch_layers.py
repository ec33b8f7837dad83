"""Split layers: the same function at full rank, the SVD's error below it, and good modules."""

import copy
import io
import pickle

import numpy as np
import onnxruntime
import pytest
import torch
from numpy.testing import assert_allclose
from torch import nn
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint
from transformers import pytorch_utils

from rmtspec.adapters import torch as rt
from rmtspec.adapters.torch._weights.matrices import weight_matrices
from rmtspec.errors import InvalidTypeError, InvalidValueError

#: Of full-rank splits: a few roundings of sums of some hundred terms.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}
SPLIT_CONV = {nn.Conv1d: rt.SplitConv1d, nn.Conv2d: rt.SplitConv2d, nn.Conv3d: rt.SplitConv3d}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def gap(actual, expected):
    """The largest difference over the largest entry."""
    return float((actual - expected).detach().double().abs().max() / expected.detach().abs().max())


def full_rank(layer):
    """The smaller side of the layer's matrix, of each group."""
    return min(next(weight_matrices(layer)).shape)


def tail(matrix, rank):
    """||W - W_k|| / ||W|| by NumPy's SVD."""
    s = np.linalg.svd(matrix.detach().double().numpy(), compute_uv=False)
    return np.sqrt((s[rank:] ** 2).sum() / (s**2).sum())


def distance(actual, expected):
    actual, expected = actual.detach().double(), expected.detach().double()
    return float(torch.linalg.norm(actual - expected) / torch.linalg.norm(expected))


def conv_inputs(layer, batch=2, size=9):
    dims = len(layer.kernel_size)
    return torch.randn(batch, layer.in_channels, *[size] * dims, dtype=layer.weight.dtype)


# ---------------------------------------------------------------------------- the same function


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("sides", [(30, 20), (20, 30), (20, 20)])
def test_linear_at_full_rank(dtype, bias, sides):
    layer = nn.Linear(*sides, bias=bias, dtype=dtype)
    split = rt.SplitLinear.from_layer(layer, 20)
    inputs = torch.randn(2, 3, sides[0], dtype=dtype)
    assert gap(split(inputs), layer(inputs)) < TOLERANCE[dtype]
    assert gap(split.weight, layer.weight) < TOLERANCE[dtype]
    assert (split.bias is None) is not bias
    assert split.inner.bias is None


CONVOLUTIONS = [
    {},
    {"stride": 2},
    {"padding": 2},
    {"padding": "same"},
    {"padding": "same", "dilation": 2},
    {"padding": "valid"},
    {"padding": 1, "stride": 2, "dilation": 2},
    {"padding": 1, "padding_mode": "reflect"},
    {"padding": 1, "padding_mode": "replicate"},
    {"padding": 1, "padding_mode": "circular"},
    {"padding": "same", "padding_mode": "circular"},
    {"groups": 2},
    {"groups": 2, "padding": 1, "padding_mode": "reflect", "stride": 2},
    {"groups": 4, "bias": False},
]


@pytest.mark.parametrize("options", CONVOLUTIONS, ids=lambda o: "-".join(map(str, o.values())))
@pytest.mark.parametrize("family", SPLIT_CONV, ids=lambda f: f.__name__)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_convolution_at_full_rank(family, options, dtype):
    layer = family(8, 12, 3, dtype=dtype, **options)
    split = SPLIT_CONV[family].from_layer(layer, full_rank(layer))
    inputs = conv_inputs(layer)
    expected = layer(inputs)
    output = split(inputs)
    assert output.shape == expected.shape
    assert gap(output, expected) < TOLERANCE[dtype]
    assert gap(split.weight, layer.weight) < TOLERANCE[dtype]
    assert split.dense_shape == tuple(layer.weight.shape)
    assert gap(split.merged()(inputs), expected) < TOLERANCE[dtype]


def test_convolution_with_sides_of_its_own():
    layer = nn.Conv2d(4, 6, (1, 5), stride=(2, 1), padding=(0, 2), dilation=(1, 1))
    split = rt.SplitConv2d.from_layer(layer, 6)
    inputs = conv_inputs(layer)
    assert gap(split(inputs), layer(inputs)) < 1e-5
    assert gap(split(inputs[0]), layer(inputs[0])) < 1e-5  # without a batch


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("sides", [(40, 20), (15, 20)])
def test_embedding_at_full_rank(dtype, sides):
    layer = nn.Embedding(*sides, padding_idx=3, dtype=dtype)
    split = rt.SplitEmbedding.from_layer(layer, min(sides))
    inputs = torch.tensor([[0, 3], [14, 3]])
    assert gap(split(inputs), layer(inputs)) < TOLERANCE[dtype]
    assert gap(split.weight, layer.weight) < TOLERANCE[dtype]
    # the padding's row stays zero (of a table with more columns: to rounding), without a gradient
    assert split(inputs)[:, 1].abs().max() <= (0.0 if sides[0] > sides[1] else 1e-15)
    split(inputs).sum().backward()
    assert not split.inner.weight.grad[3].any()
    assert split.inner.weight.grad[0].any()


def test_transformers_conv1d_at_full_rank():
    layer = pytorch_utils.Conv1D(30, 20).double()
    nn.init.normal_(layer.bias)
    split = rt.SplitLinear.from_layer(layer, 20)
    inputs = torch.randn(2, 3, 20, dtype=torch.float64)
    assert gap(split(inputs), layer(inputs)) < 1e-12
    assert gap(split.weight, layer.weight) < 1e-12
    assert (split.kind, split.nf, split.nx) == ("transposed linear", 30, 20)
    assert (split.in_features, split.out_features) == (20, 30)
    merged = split.merged()
    assert type(merged) is pytorch_utils.Conv1D
    assert gap(merged(inputs), layer(inputs)) < 1e-12


# ---------------------------------------------------------------------------- below full rank


@pytest.mark.parametrize("rank", [1, 5, 19])
def test_truncated_linear_has_the_error_of_the_svd(rank):
    layer = nn.Linear(30, 20, dtype=torch.float64)
    split = rt.SplitLinear.from_layer(layer, rank)
    assert (split.inner.weight.shape, split.outer.weight.shape) == ((rank, 30), (20, rank))
    assert_allclose(distance(split.weight, layer.weight), tail(layer.weight, rank), rtol=1e-9)


@pytest.mark.parametrize("family", SPLIT_CONV, ids=lambda f: f.__name__)
def test_truncated_convolution_has_the_error_of_the_svd(family):
    layer = family(8, 12, 3, groups=2, dtype=torch.float64)
    split = SPLIT_CONV[family].from_layer(layer, 2)
    assert (split.inner.out_channels, split.outer.in_channels) == (4, 4)
    for group in range(2):
        rows = slice(6 * group, 6 * group + 6)
        actual, expected = split.weight[rows].flatten(1), layer.weight[rows].flatten(1)
        assert_allclose(distance(actual, expected), tail(expected, 2), rtol=1e-9)


def test_truncated_embedding_has_the_error_of_the_svd():
    layer = nn.Embedding(40, 20, dtype=torch.float64)
    split = rt.SplitEmbedding.from_layer(layer, 5)
    assert (split.inner.weight.shape, split.outer.weight.shape) == ((40, 5), (20, 5))
    assert_allclose(distance(split.weight, layer.weight), tail(layer.weight, 5), rtol=1e-9)


def test_an_input_moment_for_each_group():
    layer = nn.Conv1d(8, 12, 3, groups=2, bias=False, dtype=torch.float64)
    inputs = torch.randn(50, 8, 3, dtype=torch.float64)
    inputs[:, 0] *= 30.0
    inputs[:, 6] *= 30.0
    patches = inputs.reshape(50, 2, 12)
    moments = [patches[:, g].T @ patches[:, g] / 50 for g in range(2)]
    free = rt.SplitConv1d.from_layer(layer, 3)
    aware = rt.SplitConv1d.from_layer(layer, 3, input_moment=[m.numpy() for m in moments])
    assert distance(aware(inputs), layer(inputs)) < 0.5 * distance(free(inputs), layer(inputs))
    shared = rt.SplitConv1d.from_layer(layer, 3, input_moment=np.eye(12))
    assert_allclose(shared.weight.detach(), free.weight.detach(), atol=1e-9)
    with pytest.raises(InvalidValueError, match="lists 3 moments; expected one for each of the 2"):
        rt.SplitConv1d.from_layer(layer, 3, input_moment=[np.eye(12)] * 3)


# ---------------------------------------------------------------------------- what can be read


def test_what_code_reads_on_a_layer_is_still_there():
    linear = rt.SplitLinear.from_layer(nn.Linear(30, 20), 4)
    assert (linear.in_features, linear.out_features, linear.rank) == (30, 20, 4)
    assert (linear.weight.shape, linear.bias.shape) == ((20, 30), (20,))
    assert linear.original_type is nn.Linear
    layer = nn.Conv2d(8, 12, (3, 5), 2, (1, 2), 2, groups=2, padding_mode="reflect")
    conv = rt.SplitConv2d.from_layer(layer, 3)
    for name in (
        "in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups",
        "padding_mode", "transposed", "output_padding",
    ):  # fmt: skip
        assert getattr(conv, name) == getattr(layer, name)
    assert conv.weight.shape == layer.weight.shape
    table = rt.SplitEmbedding.from_layer(nn.Embedding(40, 20, padding_idx=1), 3)
    assert (table.num_embeddings, table.embedding_dim, table.padding_idx) == (40, 20, 1)
    assert table.bias is None
    assert repr(linear).startswith("SplitLinear(\n  rank=4\n  (inner): Linear(in_features=30,")


def test_the_weight_is_read_only_and_differentiable():
    layer = rt.SplitLinear.from_layer(nn.Linear(30, 20), 4)
    with pytest.raises((AttributeError, TypeError, KeyError)):
        layer.weight = nn.Parameter(torch.zeros(20, 30))
    with pytest.raises(AttributeError):
        layer.weight = torch.zeros(20, 30)
    assert [name for name, _ in layer.named_parameters()] == [
        "inner.weight",
        "outer.weight",
        "outer.bias",
    ]
    layer.weight.square().sum().backward()
    assert layer.inner.weight.grad.abs().sum() > 0


def test_keys_of_the_state_dict():
    model = nn.Sequential(nn.Linear(30, 20), nn.Conv2d(8, 12, 3, bias=False))
    model[0] = rt.SplitLinear.from_layer(model[0], 4)
    model[1] = rt.SplitConv2d.from_layer(model[1], 4)
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    assert shapes == {
        "0.inner.weight": (4, 30),
        "0.outer.weight": (20, 4),
        "0.outer.bias": (20,),
        "1.inner.weight": (4, 8, 3, 3),
        "1.outer.weight": (12, 4, 1, 1),
    }


# ---------------------------------------------------------------------------- what is kept


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_dtype_is_kept(dtype):
    for layer, split_type in (
        (nn.Linear(30, 20), rt.SplitLinear),
        (nn.Conv2d(8, 12, 3, groups=2), rt.SplitConv2d),
        (nn.Embedding(40, 20), rt.SplitEmbedding),
    ):
        layer = layer.to(dtype)
        split = split_type.from_layer(layer, full_rank(layer))
        assert {value.dtype for value in split.state_dict().values()} == {dtype}
        assert split.weight.dtype == dtype
        assert split.merged().weight.dtype == dtype
        # two factors, each rounded once: a few units in the last place
        assert gap(split.weight, layer.weight) < max(8 * torch.finfo(dtype).eps, 1e-13)


def test_factors_are_torchs_own_contiguous_memory_on_the_layers_device():
    layer = nn.Linear(30, 20)
    split = rt.SplitLinear.from_layer(layer, 4)
    for factor in (split.inner, split.outer):
        assert factor.weight.is_contiguous()
        assert factor.weight.is_leaf
        assert factor.weight.device == layer.weight.device
        assert factor.weight.data_ptr() % 16 == 0
    assert split.outer.bias is layer.bias  # one at a time, the bias is shared


def test_frozen_and_evaluation_mode_are_kept():
    layer = nn.Linear(30, 20).eval()
    layer.weight.requires_grad_(False)
    split = rt.SplitLinear.from_layer(layer, 4)
    assert not split.inner.weight.requires_grad
    assert not split.outer.weight.requires_grad
    assert split.outer.bias.requires_grad
    assert not any(module.training for module in split.modules())
    assert not split.merged().weight.requires_grad
    assert not split.merged().training
    trained = rt.SplitLinear.from_layer(nn.Linear(30, 20), 4)
    assert all(module.training for module in trained.modules())
    assert all(p.requires_grad for p in trained.parameters())


def test_channels_last_is_kept():
    layer = nn.Conv2d(8, 12, 3, padding=1).to(memory_format=torch.channels_last)
    split = rt.SplitConv2d.from_layer(layer, 8)
    assert split.inner.weight.is_contiguous(memory_format=torch.channels_last)
    assert not split.inner.weight.is_contiguous()
    inputs = conv_inputs(layer).to(memory_format=torch.channels_last)
    assert split(inputs).is_contiguous(memory_format=torch.channels_last)
    assert gap(rt.SplitConv2d.from_layer(layer, 12)(inputs), layer(inputs)) < 1e-5
    assert split.merged().weight.is_contiguous(memory_format=torch.channels_last)


def test_attributes_of_the_users_are_kept():
    layer = nn.Linear(30, 20)
    layer.note = {"from": "the user"}
    layer.inner = layer.rank = "a name that split layers use too"
    split = rt.SplitLinear.from_layer(layer, 4)
    assert split.note is layer.note
    assert split(torch.zeros(1, 30)).shape == (1, 20)
    assert split.rank == 4
    assert split.merged().note is layer.note


def test_forward_hooks_go_along_and_their_handles_still_work():
    layer = nn.Linear(30, 20)
    seen = []
    handles = [
        layer.register_forward_pre_hook(lambda module, args: seen.append(("pre", type(module)))),
        layer.register_forward_hook(lambda module, args, output: output * 0 + 7.0),
        layer.register_forward_hook(
            lambda module, args, kwargs, output: seen.append(("kwargs", type(module))),
            with_kwargs=True,
        ),
    ]
    split = rt.SplitLinear.from_layer(layer, 4)
    assert (split(torch.zeros(1, 30)) == 7.0).all()
    assert seen == [("pre", rt.SplitLinear), ("kwargs", rt.SplitLinear)]
    for handle in handles:
        handle.remove()
    assert not (split(torch.zeros(1, 30)) == 7.0).any()
    assert len(seen) == 2


def test_hooks_that_are_always_called_go_along():
    layer, seen = nn.Linear(30, 20), []
    layer.register_forward_hook(lambda *_: seen.append(1), always_call=True)
    split = rt.SplitLinear.from_layer(layer, 4)
    with pytest.raises(RuntimeError):
        split(torch.zeros(1, 31))
    assert seen == [1]


def test_backward_hooks_go_along_and_their_handles_still_work():
    layer, seen = nn.Linear(30, 20), []
    handles = [
        layer.register_full_backward_pre_hook(lambda module, outputs: seen.append("pre")),
        layer.register_full_backward_hook(lambda module, inputs, outputs: seen.append("after")),
    ]
    split = rt.SplitLinear.from_layer(layer, 4)
    split(torch.ones(1, 30, requires_grad=True)).sum().backward()
    assert seen == ["pre", "after"]
    for handle in handles:
        handle.remove()
    split(torch.ones(1, 30, requires_grad=True)).sum().backward()
    assert len(seen) == 2


def test_hooks_on_a_pruned_model():
    model = nn.Sequential(nn.Linear(30, 20), nn.ReLU())
    seen = []
    handle = model[0].register_forward_hook(lambda *_: seen.append(1))
    smaller, _ = rt.prune(model, ranks={"0": 4})
    smaller(torch.zeros(1, 30))
    model(torch.zeros(1, 30))
    assert len(seen) == 2
    same, _ = rt.prune(model, ranks={"0": 4}, inplace=True)
    same(torch.zeros(1, 30))
    assert len(seen) == 3
    handle.remove()
    same(torch.zeros(1, 30))
    assert len(seen) == 3


def test_a_compiled_layers_old_forward_does_not_go_along():
    layer = nn.Linear(30, 20)
    layer.compile(backend="eager")
    inputs = torch.randn(2, 30)
    layer(inputs)
    split = rt.SplitLinear.from_layer(layer, 1)
    assert gap(split(inputs), layer(inputs)) > 0.1
    assert torch.equal(split(inputs), split.forward(inputs))


# ---------------------------------------------------------------------------- copies


@pytest.mark.parametrize(
    "again",
    [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module)), "torch.save"],
    ids=["deepcopy", "pickle", "torch.save"],
)
def test_copies(again):
    if again == "torch.save":

        def again(module):
            stream = io.BytesIO()
            torch.save(module, stream)
            stream.seek(0)
            return torch.load(stream, weights_only=False)

    layer = nn.Conv2d(8, 12, 3, groups=2, padding="same", padding_mode="circular").eval()
    split = rt.SplitConv2d.from_layer(layer, 3)
    other = again(split)
    inputs = conv_inputs(layer)
    assert torch.equal(other(inputs), split(inputs))
    assert (type(other), other.rank, other.original_type) == (rt.SplitConv2d, 3, nn.Conv2d)
    assert other.kernel_size == (3, 3)
    with torch.no_grad():
        other.inner.weight.zero_()
    assert split.inner.weight.any()
    assert type(other.merged()) is nn.Conv2d


def test_load_state_dict():
    layer = nn.Linear(30, 20)
    one, other = rt.SplitLinear.from_layer(layer, 4), rt.SplitLinear.from_layer(layer, 4)
    with torch.no_grad():
        one.inner.weight.mul_(2.0)
    other.load_state_dict(one.state_dict())
    assert torch.equal(one.weight, other.weight)


# ---------------------------------------------------------------------------- torch's machinery


class Net(nn.Module):
    """A convolution, a Linear and an embedding, all split unless asked otherwise."""

    def __init__(self, split=True):
        super().__init__()
        torch.manual_seed(1)
        self.conv = nn.Conv2d(3, 16, 3, padding=1)
        self.table = nn.Embedding(30, 16)
        self.fc = nn.Linear(16, 24)
        if split:
            self.conv = rt.SplitConv2d.from_layer(self.conv, 6)
            self.table = rt.SplitEmbedding.from_layer(self.table, 6)
            self.fc = rt.SplitLinear.from_layer(self.fc, 6)

    def forward(self, image, token):
        return self.fc(torch.relu(self.conv(image)).mean((2, 3)) + self.table(token))


def example():
    generator = torch.Generator().manual_seed(2)
    return (
        torch.randn(2, 3, 8, 8, generator=generator),
        torch.randint(0, 30, (2,), generator=generator),
    )


def gradients(model):
    return {name: p.grad for name, p in model.named_parameters()}


def assert_same_training(model, run):
    """`run(model)` gives the output and gradients of `model` called plainly."""
    expected = model(*example())
    expected.square().sum().backward()
    grads = {name: grad.clone() for name, grad in gradients(model).items()}
    model.zero_grad()
    output = run(model)
    output.square().sum().backward()
    assert gap(output, expected) < 1e-5
    for name, grad in gradients(model).items():
        assert gap(grad, grads[name]) < 1e-4, name


def test_compile_eager():
    torch._dynamo.reset()
    assert_same_training(Net(), lambda net: torch.compile(net, backend="eager", fullgraph=True)(
        *example()))  # fmt: skip


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning")
def test_compile_inductor():
    torch._dynamo.reset()
    assert_same_training(Net(), lambda net: torch.compile(net, fullgraph=True)(*example()))


def test_checkpointing():
    net = Net()
    assert_same_training(net, lambda net: checkpoint(net, *example(), use_reentrant=False))


def test_export():
    net = Net().eval()
    program = torch.export.export(net, example())
    assert gap(program.module()(*example()), net(*example())) < 1e-6
    kept = {key for key in program.state_dict if key.startswith("fc.")}
    assert kept == {"fc.inner.weight", "fc.outer.weight", "fc.outer.bias"}


@pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec:FutureWarning")
def test_onnx(tmp_path):
    net = Net().eval()
    file = tmp_path / "net.onnx"
    torch.onnx.export(net, example(), file, dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    names = [put.name for put in session.get_inputs()]
    feed = {name: value.numpy() for name, value in zip(names, example(), strict=True)}
    (output,) = session.run(None, feed)
    expected = net(*example()).detach().numpy()
    assert_allclose(output, expected, atol=1e-5 * np.abs(expected).max())


def test_autocast():
    net, inputs = Net(), example()
    expected = net(*inputs)
    with torch.autocast("cpu", torch.bfloat16):
        output = net(*inputs)
        assert output.dtype == torch.bfloat16
        assert net.fc.weight.dtype == torch.bfloat16  # as a product is, under autocast
    assert gap(output, expected) < 0.05
    output.float().sum().backward()
    assert net.fc.inner.weight.grad.dtype == torch.float32


def test_a_default_device_does_not_reach_the_factors():
    model = nn.Sequential(nn.Linear(30, 20), nn.Linear(20, 40))
    table = nn.Embedding(40, 20)
    batches = [torch.randn(50, 30)]
    torch.set_default_device("meta")
    try:
        smaller, _ = rt.prune(model, ranks={"0": 4}, calibration=batches)
        merged = rt.merge(smaller)
        split = rt.SplitEmbedding.from_layer(table, 4)
        rt.prune(model, mode="truncate", inplace=True)
        assert torch.zeros(1).is_meta
    finally:
        torch.set_default_device(None)
    for module in (smaller, merged, split, model):
        assert {p.device.type for p in module.parameters()} == {"cpu"}
    assert gap(merged[0].weight, smaller[0].weight) < 1e-5


def test_a_default_dtype_does_not_reach_the_factors():
    model = nn.Sequential(nn.Linear(30, 20))
    torch.set_default_dtype(torch.float64)
    try:
        smaller, _ = rt.prune(model, ranks={"0": 4})
        assert {p.dtype for p in smaller.parameters()} == {torch.float32}
        assert {p.dtype for p in rt.merge(smaller).parameters()} == {torch.float32}
    finally:
        torch.set_default_dtype(torch.float32)


def _rank_gradients(rank, world, folder):
    """Run one backward pass on this rank's half of the batch; save its gradients."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world
    )
    net = nn.parallel.DistributedDataParallel(Net())
    image, token = example()
    net(image[rank : rank + 1], token[rank : rank + 1]).square().mean().backward()
    torch.save(gradients(net.module), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_data_parallel_training_in_two_processes(tmp_path):
    if not (torch.distributed.is_available() and torch.distributed.is_gloo_available()):
        pytest.skip("torch was built without gloo")
    import torch.multiprocessing as processes

    processes.spawn(_rank_gradients, args=(2, str(tmp_path)), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    net = Net()
    net(*example()).square().mean().backward()
    for name, expected in gradients(net).items():
        assert torch.equal(first[name], second[name]), name
        assert gap(first[name], expected) < 1e-5, name


# ---------------------------------------------------------------------------- inside a transformer


@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_encoder_layer_with_split_feed_forward(activation, monkeypatch):
    layer = nn.TransformerEncoderLayer(
        32, 4, 64, dropout=0.0, batch_first=True, activation=activation
    )
    layer.linear1 = rt.SplitLinear.from_layer(layer.linear1, 6)
    layer.linear2 = rt.SplitLinear.from_layer(layer.linear2, 6)
    merged = rt.merge(layer)
    assert type(merged.linear1) is nn.Linear
    inputs = torch.randn(3, 5, 32)
    mask = torch.tensor([[False] * 5, [False] * 3 + [True] * 2, [False] * 5])
    kept = ~mask
    assert gap(layer(inputs), merged(inputs)) < 1e-5
    fused, calls = torch._transformer_encoder_layer_fwd, []

    def counted(*args):
        calls.append(1)
        return fused(*args)

    monkeypatch.setattr(torch, "_transformer_encoder_layer_fwd", counted)
    layer.eval(), merged.eval()
    with torch.no_grad():  # the fused path would read linear1.weight, and save nothing
        assert gap(layer(inputs), merged(inputs)) < 1e-5
        assert len(calls) == 1
        assert gap(layer(inputs), layer.train()(inputs)) < 1e-5
        layer.eval()
        output, expected = (m(inputs, src_key_padding_mask=mask) for m in (layer, merged))
        assert gap(output[kept], expected[kept]) < 1e-5


def test_encoder_without_nested_tensors():
    encoder = nn.TransformerEncoder(
        nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True),
        2,
        enable_nested_tensor=False,
    )
    smaller, report = rt.prune(
        encoder, ranks={f"layers.{i}.linear{j}": 6 for i in (0, 1) for j in (1, 2)}
    )
    assert sum(row["action"] == "split" for row in report.rows) == 4
    merged = rt.merge(smaller)
    inputs = torch.randn(3, 5, 32)
    mask = torch.tensor([[False] * 5, [False] * 3 + [True] * 2, [False] * 5])
    assert gap(smaller(inputs), merged(inputs)) < 1e-5
    smaller.eval(), merged.eval()
    with torch.no_grad():
        output, expected = (m(inputs, src_key_padding_mask=mask) for m in (smaller, merged))
    assert gap(output[~mask], expected[~mask]) < 1e-5


# ---------------------------------------------------------------------------- what is refused


def test_from_layer_takes_layers_of_its_type():
    with pytest.raises(InvalidTypeError, match=r"`layer` is a Conv2d; SplitLinear splits layers of "
                       "kind linear or transposed linear"):  # fmt: skip
        rt.SplitLinear.from_layer(nn.Conv2d(3, 4, 3), 2)
    with pytest.raises(InvalidTypeError, match="is a ReLU; SplitConv2d splits"):
        rt.SplitConv2d.from_layer(nn.ReLU(), 2)
    with pytest.raises(InvalidTypeError, match="is a Conv1d; SplitConv2d splits"):
        rt.SplitConv2d.from_layer(nn.Conv1d(3, 4, 3), 2)
    with pytest.raises(InvalidTypeError, match="depthwise"):
        rt.SplitConv2d.from_layer(nn.Conv2d(4, 4, 3, groups=4), 1)
    with pytest.raises(InvalidTypeError, match="remove_parametrizations"):
        rt.SplitLinear.from_layer(parametrizations.weight_norm(nn.Linear(3, 4)), 2)
    with pytest.raises(InvalidTypeError, match="max_norm rescales"):
        rt.SplitEmbedding.from_layer(nn.Embedding(5, 4, max_norm=1.0), 2)
    with pytest.raises(InvalidTypeError, match="meta device"):
        rt.SplitLinear.from_layer(nn.Linear(5, 4, device="meta"), 2)


@pytest.mark.parametrize("rank", [0, 21, -1])
def test_from_layer_rank_outside(rank):
    with pytest.raises(InvalidValueError, match=f"`rank` is {rank}; .*from 1 to 20"):
        rt.SplitLinear.from_layer(nn.Linear(30, 20), rank)


def test_from_layer_rank_and_values():
    with pytest.raises(InvalidTypeError, match=r"`rank` is 2\.5"):
        rt.SplitLinear.from_layer(nn.Linear(30, 20), 2.5)
    layer = nn.Linear(30, 20)
    with torch.no_grad():
        layer.weight[3, 4] = float("nan")
    with pytest.raises(InvalidValueError, match=r"1 nan and 0 infinite entries, .*\[3, 4\]"):
        rt.SplitLinear.from_layer(layer, 2)


def test_models_pickled_before_the_classes_moved_find_them():
    for kind in ("SplitConv1d", "SplitConv2d", "SplitConv3d", "SplitEmbedding", "SplitLinear"):
        old = f"crmtspec.adapters.torch._layers\n{kind}\n.".encode()
        assert pickle.loads(old) is getattr(rt, kind)
