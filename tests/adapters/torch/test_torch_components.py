"""What a component of a layer is: planted pictures, tokens and examples, and what is refused."""

import copy

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from torch import nn

from rmtspec.adapters import torch as rt
from rmtspec.errors import InvalidTypeError, InvalidValueError

WORDS = [f"word{i}" for i in range(60)]
WIDTH = 24


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


class Block(nn.Module):
    """A block of a transformer without attention; the norms have weights that differ."""

    def __init__(self):
        super().__init__()
        self.norm = nn.RMSNorm(WIDTH)
        self.up_proj = nn.Linear(WIDTH, 48, bias=False)
        self.down_proj = nn.Linear(48, WIDTH, bias=False)
        self.other = nn.Linear(48, 48, bias=False)

    def forward(self, stream):
        return stream + self.down_proj(torch.relu(self.other(self.up_proj(self.norm(stream)))))


class Model(nn.Module):
    def __init__(self, last=nn.RMSNorm, head=True):
        super().__init__()
        self.embed = nn.Embedding(len(WORDS), WIDTH)
        self.layers = nn.ModuleList([Block(), Block()])
        self.norm = last(WIDTH)
        if head:
            self.lm_head = nn.Linear(WIDTH, len(WORDS), bias=False)
        for norm in (self.norm, *(block.norm for block in self.layers)):
            norm.weight.data = torch.linspace(0.2, 3, WIDTH)[torch.randperm(WIDTH)]
            if getattr(norm, "bias", None) is not None:
                norm.bias.data = torch.randn(WIDTH)

    def forward(self, input_ids):
        stream = self.embed(input_ids)
        for block in self.layers:
            stream = block(stream)
        stream = self.norm(stream)
        return self.lm_head(stream) if hasattr(self, "lm_head") else stream


def plant(layer, u, v, strength=9.0):
    u, v = (vector / vector.norm() for vector in (u, v))
    with torch.no_grad():
        layer.weight += strength * torch.outer(u, v)


def show(model, name, k=2, **options):
    return rt.components(model, name, k, noise="mp", **options)


def nearest(direction, side):
    """Return the number of the nearest token, whichever end it is at, and its nearness."""
    found = direction.tokens[side]
    ends = [*found.towards[:1], *found.against[:1]]
    return max(ends, key=lambda token: abs(token.cosine)).number, found.nearness


@torch.no_grad()
def test_a_token_planted_into_what_a_layer_reads():
    model = Model()
    norm, up = model.layers[1].norm, model.layers[1].up_proj
    plant(up, torch.randn(48), norm(model.embed.weight[17]))
    found = show(model, "layers.1.up_proj", tokenizer=WORDS)
    assert nearest(found[0], "in")[0] == 17
    # float32 weights; noise of the weight turns the vector a little
    assert_allclose(nearest(found[0], "in")[1], 1.0, atol=0.02)
    assert list(found[0].tokens) == ["in"]
    assert any("'layers.1.norm' that the layer reads" in note for note in found.notes)
    assert any(note.startswith("out: what it puts out stays inside") for note in found.notes)
    assert "'word17' 1.00" in repr(found)
    # Without the norm the direction is another: it has to be folded in to be found so near.
    plain = nn.functional.cosine_similarity(
        torch.tensor(found[0].right).float(), model.embed.weight[17], dim=0
    )
    assert abs(plain) < 0.9


@pytest.mark.parametrize("last", [nn.RMSNorm, nn.LayerNorm])
@torch.no_grad()
def test_a_token_planted_into_what_a_layer_writes(last):
    model = Model(last)
    scale = model.norm.weight
    row = model.lm_head.weight[33]
    if last is nn.LayerNorm:  # which takes the mean out: only such a direction is met exactly
        row -= (row / scale).mean() / (1 / scale**2).mean() / scale
        assert abs((row / scale).mean()) < 1e-6
    plant(model.layers[0].down_proj, row / scale, torch.randn(48))
    found = show(model, "layers.0.down_proj", tokenizer=WORDS)
    assert nearest(found[0], "out")[0] == 33
    assert_allclose(nearest(found[0], "out")[1], 1.0, atol=0.02)
    assert list(found[0].tokens) == ["out"]
    assert any("'lm_head', with the norm 'norm' before it" in note for note in found.notes)
    assert found[0].tokens["out"].pvalue == 0.01


@torch.no_grad()
def test_without_a_head_the_embeddings_are_read_and_it_is_said():
    model = Model(head=False)
    plant(model.layers[0].down_proj, model.embed.weight[5], torch.randn(48))
    found = show(model, "layers.0.down_proj", tokenizer=WORDS)
    assert nearest(found[0], "out")[0] == 5
    assert any("as the model has no output head, without a norm" in note for note in found.notes)


@torch.no_grad()
def test_rows_of_embeddings_and_heads_are_tokens():
    model = Model()
    axis = nn.functional.one_hot(torch.tensor(8), len(WORDS)).float()
    for name, layer in (("embed", model.embed), ("lm_head", model.lm_head)):
        plant(layer, axis, torch.randn(WIDTH), strength=40.0)
        found = show(model, name, tokenizer=WORDS)
        assert nearest(found[0], "rows")[0] == 8
        assert "rows: each row of the matrix is a token" in found.notes[0]


def test_a_tied_head_is_read_at_the_embeddings():
    model = Model()
    model.lm_head.weight = model.embed.weight
    assert show(model, "embed", tokenizer=WORDS)[0].tokens["rows"].nearness > 0.0
    with pytest.raises(InvalidValueError, match=r"cannot be read: tied to embed\.weight"):
        show(model, "lm_head", tokenizer=WORDS)


def test_a_layer_inside_a_block_has_no_tokens():
    found = show(Model(), "layers.0.other", tokenizer=WORDS)
    assert found[0].tokens == {}
    assert any("in: 48 columns, and embeddings have 24" in note for note in found.notes)


def test_a_layer_that_reads_the_embeddings_themselves():
    model = nn.Sequential(nn.Embedding(60, WIDTH), nn.Linear(WIDTH, 40, bias=False))
    plant(model[1], torch.randn(40), model[0].weight[3].detach())
    found = show(model, "1", tokenizer=WORDS)
    assert nearest(found[0], "in")[0] == 3
    assert any("which it reads without a norm" in note for note in found.notes)


def test_a_model_that_does_not_run_on_tokens_alone_says_so():
    class Strange(Model):
        def forward(self, input_ids, mask):
            return super().forward(input_ids) * mask

    model = Strange()
    found = show(model, "layers.0.up_proj", tokenizer=WORDS)
    assert any("did not run on tokens alone" in note for note in found.notes)
    assert any("no norm of the layer was seen" in note for note in found.notes)
    batch = {"input_ids": torch.arange(6)[None], "mask": torch.ones(1)}
    found = show(model, "layers.0.up_proj", tokenizer=WORDS, batch=batch)
    assert any("'layers.0.norm'" in note for note in found.notes)


def test_a_planted_picture_is_seen():
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 60), nn.ReLU(), nn.Linear(60, 5))
    picture = torch.zeros(3, 8, 8)
    picture[1, 2:6, 3] = 1.0
    plant(model[1], torch.randn(60), picture.flatten())
    found = show(model, "1", image_shape=(3, 8, 8))
    shown = found[0].image
    assert shown.shape == (3, 8, 8)
    assert_allclose(shown, picture / 2, atol=0.06)  # four pixels of length 1
    assert found[0].beyond
    swapped = show(model, "1", image_shape=(8, 8, 3))[0].image
    assert swapped.shape == (3, 8, 8)
    assert_allclose(swapped.transpose(1, 2, 0).ravel(), found[0].right)
    assert found[1].image.shape == found.random.image.shape == (3, 8, 8)


def test_filters_of_convolutions_are_pictures_without_asking():
    model = nn.Sequential(nn.Conv2d(3, 32, 5), nn.Conv2d(32, 8, 3, groups=2), nn.Conv2d(8, 9, 1))
    edge = torch.zeros(3, 5, 5)
    edge[:, :, 1], edge[:, :, 3] = 1.0, -1.0
    with torch.no_grad():
        model[0].weight += 0.5 * torch.randn(32, 1, 1, 1) * edge
    found = show(model, "0")
    assert found[0].image.shape == (3, 5, 5)
    aligned = float(np.vdot(found[0].image, edge.numpy())) / float(edge.norm())
    assert abs(aligned) > 0.98
    # channels, not a picture with three channels at its end
    assert show(model, "1[1]")[0].image.shape == (16, 3, 3)
    assert show(model, "2")[0].image is None
    line = nn.Sequential(nn.Conv1d(4, 16, 9))
    assert show(line, "0")[0].image.shape == (4, 9)


def reference(layer, image, vector, part=slice(None)):
    """Return what a direction of a convolution puts out at each position of an image."""
    filters = torch.tensor(vector, dtype=torch.float32).reshape(1, -1, *layer.kernel_size)
    options = {"stride": layer.stride, "padding": layer.padding, "dilation": layer.dilation}
    return nn.functional.conv2d(image[None, part], filters, **options)[0, 0].flatten()


@pytest.mark.parametrize("groups", [1, 2])
@torch.no_grad()
def test_examples_of_convolutions_are_found_by_their_patches(groups):
    layer = nn.Conv2d(4, 20, 3, stride=2, padding=1, groups=groups)
    batch = torch.randn(12, 4, 9, 9)
    name, part = ("0", slice(None)) if groups == 1 else ("0[1]", slice(2, 4))
    found = show(nn.Sequential(layer), name, batch=batch)
    for direction in (*found, found.random):
        rows = torch.stack([reference(layer, image, direction.right, part) for image in batch])
        peaks = rows.gather(1, rows.abs().argmax(1, keepdim=True))[:, 0]
        order = peaks.abs().argsort(descending=True)[:5]
        assert direction.examples.indices.tolist() == order.tolist()
        assert_allclose(direction.examples.activations, peaks[order], rtol=1e-4)  # float32
        assert_allclose(direction.examples.rms, rows.square().mean().sqrt(), rtol=1e-4)
        places = rows.abs().argmax(1)[order]
        assert direction.examples.positions.tolist() == places.tolist()


@torch.no_grad()
def test_examples_of_sequences_leave_padding_out():
    model = Model()
    ids = torch.randint(1, 60, (6, 10))
    mask = torch.ones(6, 10, dtype=torch.int64)
    mask[:, 7:] = 0

    class Masked(Model):
        def forward(self, input_ids, attention_mask=None):
            return super().forward(input_ids)

    masked = Masked()
    masked.load_state_dict(model.state_dict())
    found = show(masked, "layers.0.up_proj", batch={"input_ids": ids, "attention_mask": mask})
    short = show(masked, "layers.0.up_proj", batch={"input_ids": ids[:, :7]})
    for one, other in zip(found, short, strict=True):
        assert_allclose(one.examples.activations, other.examples.activations, rtol=1e-6)
        assert one.examples.positions.max() < 7
    read = model.layers[0].norm(model.embed(ids[:, :7])).double() @ torch.tensor(found[0].right)
    assert_allclose(found[0].examples.rms, read.square().mean().sqrt(), rtol=1e-6)


def test_a_split_layer_stands_for_its_product():
    model = rt.MLP([64, 100, 10])
    plant(model.layers[0], torch.randn(100), torch.ones(64))
    smaller, _ = rt.prune(model, ranks={"layers.0": 20}, include="layers.0")
    batch = torch.randn(9, 64)
    dense, split = (
        show(each, "layers.0", image_shape=(8, 8), batch=batch) for each in (model, smaller)
    )
    assert_allclose(split[0].singular_value, dense[0].singular_value, rtol=1e-5)
    assert_allclose(split[0].image, dense[0].image, atol=1e-4)
    assert split[0].examples.indices.tolist() == dense[0].examples.indices.tolist()
    assert len(show(smaller, "layers.0", 20)) == 20
    with pytest.raises(InvalidValueError, match="has rank 20"):
        show(smaller, "layers.0", 21)
    assert show(smaller, "layers.0.inner").name == "layers.0.inner"


def test_the_model_is_left_as_it_was():
    model = Model().train()
    before = copy.deepcopy(model.state_dict())
    batch = torch.arange(12).reshape(3, 4)
    show(model, "layers.0.up_proj", tokenizer=WORDS, batch=batch)
    assert model.training
    assert all(not module._forward_hooks for module in model.modules())
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    with pytest.raises(InvalidValueError, match="cannot be called with it"):
        show(model, "layers.0.up_proj", batch=torch.full((2, 3), 99))
    assert model.training
    assert all(not module._forward_hooks for module in model.modules())


def test_the_same_seed_gives_the_same_result_and_noise_is_that_of_analyze():
    model = rt.MLP([64, 100, 10])
    one, same = (rt.components(model, "layers.0", 3, rng=4) for _ in range(2))
    assert one.to_dict() | {"versions": 0} == same.to_dict() | {"versions": 0}
    assert one.report.noise.model in ("equalized", "signflip")
    assert show(model, "layers.0").report.noise.model == "mp"
    assert "torch" in one.versions


def test_half_precision_is_read():
    model = Model().to(torch.bfloat16)
    batch = torch.arange(12).reshape(3, 4)
    found = show(model, "layers.0.up_proj", tokenizer=WORDS, batch=batch)
    assert found[0].tokens["in"].nearness > 0


@pytest.mark.parametrize(
    ("name", "options", "error", "words"),
    [
        ("layers.0.up_prj", {}, InvalidValueError, r"Did you mean 'layers.0.up_proj'"),
        ("zzz", {}, InvalidValueError, r"one of the 8 matrices of the model\. They are embed, "),
        (3, {}, InvalidTypeError, r"`layer` is a int; expected the name of a matrix"),
        ("norm.weight", {}, InvalidValueError, r"cannot be read: 1 dimension: a vector"),
        ("embed", {"k": 25}, InvalidValueError, r"`k` is 25; .* 1 to 24\. 'embed' is 60 x 24"),
        ("embed", {"k": 0}, InvalidValueError, r"`k` is 0; expected a whole number from 1"),
        ("embed", {"k": 2.5}, InvalidTypeError, r"`k` is 2.5 .* a whole number"),
        ("embed", {"top": 0}, InvalidValueError, r"`top` is 0"),
        ("embed", {"draws": 3}, InvalidValueError, r"`draws` is 3"),
        ("embed", {"betta": 1}, InvalidTypeError, r"`betta` is not an option"),
        ("embed", {"image_shape": (5, 5)}, InvalidValueError,
         r"picture of 25 numbers; expected .* product is 24, the number of columns of 'embed'\. A "
         r"layer that does not read pixels"),
        ("embed", {"image_shape": 24}, InvalidTypeError, r"two or three whole numbers"),
        ("embed", {"image_shape": (24,)}, InvalidValueError, r"\(height, width\) or"),
        ("embed", {"image_shape": (2, 3, 2, 2)}, InvalidValueError, r"\(height, width\) or"),
        ("embed", {"image_shape": (-4, -6)}, InvalidValueError, r"`image_shape` is -4"),
        ("embed", {"tokenizer": "gpt2"}, InvalidTypeError, r"AutoTokenizer\.from_pretrained"),
        ("embed", {"tokenizer": []}, InvalidTypeError, r"`tokenizer` is a list; expected a tok"),
        ("embed", {"tokenizer": [1, 2]}, InvalidTypeError, r"the list of the texts"),
        ("embed", {"tokenizer": WORDS * 2}, InvalidValueError,
         r"has 120 tokens, and the table of embeddings 'embed' has 60 rows"),
        ("layers.0.up_proj", {"batch": "text"}, InvalidTypeError, r"`batch` is a str; expected"),
        ("layers.0.up_proj", {"batch": ["a", "b"]}, InvalidTypeError, r"is a list of str; exp"),
        ("layers.0.up_proj", {"batch": []}, InvalidTypeError, r"`batch` is a list without entries"),
        ("layers.0.up_proj", {"batch": {"ids": torch.ones(1)}}, InvalidTypeError,
         r"`batch` is a dict of 1, and the model cannot be called"),
        ("embed", {"batch": torch.ones(1, 3).long()}, InvalidValueError,
         r"of kind embedding, whose inputs are not known"),
    ],
)  # fmt: skip
def test_wrong_input_is_refused_with_the_way_out(name, options, error, words):
    with pytest.raises(error, match=words):
        rt.components(Model(), name, **{"k": 2, "noise": "mp", **options})


def test_more_that_is_refused():
    with pytest.raises(InvalidTypeError, match=r"expected a torch\.nn\.Module"):
        rt.components({"a": np.eye(3)}, "a")
    loader = torch.utils.data.DataLoader([torch.ones(3)])
    with pytest.raises(InvalidTypeError, match=r"is a DataLoader; .*next\(iter\(loader\)\)"):
        show(Model(), "embed", batch=loader)
    large = nn.Sequential(nn.Embedding(400, 20))  # a tokenizer of another, smaller model
    with pytest.raises(InvalidValueError, match=r"has 60 tokens, .* 400 rows.* a few unused ones"):
        show(large, "0", tokenizer=WORDS)
    with pytest.raises(InvalidValueError, match="no table of embeddings that can be read"):
        show(rt.MLP([20, 30]), "layers.0", tokenizer=WORDS)
    two = nn.ModuleDict({"a": nn.Embedding(60, 20), "b": nn.Embedding(60, 20)})
    with pytest.raises(InvalidValueError, match="has 2 tables of embeddings"):
        show(two, "a", tokenizer=WORDS)
    several = nn.ModuleDict({"attn": nn.MultiheadAttention(20, 2)})
    with pytest.raises(InvalidValueError, match=r"3 matrices; expected one of 'attn\[q\]'"):
        show(several, "attn")

    class Unused(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.idle = nn.Linear(20, 20), nn.Linear(20, 20)

        def forward(self, x):
            return self.used(x)

    with pytest.raises(InvalidValueError, match="without calling the layer"):
        show(Unused(), "idle", batch=torch.ones(2, 20))


def test_a_conv_says_the_shape_of_its_filters():
    with pytest.raises(InvalidValueError, match=r"A filter of this layer is \(3, 5, 5\)"):
        show(nn.Sequential(nn.Conv2d(3, 32, 5)), "0", image_shape=(28, 28))
    with pytest.raises(InvalidValueError, match=r"Perhaps \(8, 8\)"):
        show(rt.MLP([64, 30]), "layers.0", image_shape=(8, 9))
