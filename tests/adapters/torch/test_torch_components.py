"""`rt.components`: directions that were planted are read as what they are."""

import json

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from torch import nn

from rmtspec.adapters import torch as rt
from rmtspec.errors import InvalidOptionError, InvalidOptionTypeError, InvalidValueError

WIDTH, WORDS = 48, 300


def unit(vector):
    return vector / np.linalg.norm(vector)


class Tokenizer:
    def __len__(self):
        return WORDS - 10  # embeddings may be padded

    def decode(self, ids):
        return f"w{ids[0]}"


class Norm(nn.Module):
    def __init__(self, scale):
        super().__init__()
        self.weight = nn.Parameter(scale)

    def forward(self, x):
        return nn.functional.normalize(x, dim=-1) * self.weight


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        scale = torch.rand(WIDTH) + 0.5
        self.input_layernorm, self.post_attention_layernorm = Norm(scale), Norm(scale.flip(0))
        self.q_proj = nn.Linear(WIDTH, 40, bias=False)
        self.up_proj = nn.Linear(WIDTH, 64, bias=False)
        self.down_proj = nn.Linear(64, WIDTH, bias=False)

    def forward(self, x):
        x = x + self.q_proj(self.input_layernorm(x)).mean()
        return x + self.down_proj(torch.relu(self.up_proj(self.post_attention_layernorm(x))))


class Language(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed_tokens = nn.Embedding(WORDS, WIDTH)
        self.layers = nn.ModuleList([Block()])
        self.norm = Norm(torch.rand(WIDTH) + 0.5)
        self.lm_head = nn.Linear(WIDTH, WORDS, bias=False)

    def get_input_embeddings(self):
        return self.embed_tokens

    def get_output_embeddings(self):
        return self.lm_head

    def forward(self, input_ids):
        x = self.embed_tokens(input_ids)
        for layer in self.layers:
            x = layer(x)
        return self.lm_head(self.norm(x))


def plant(weight, left, right, strength=30.0):
    with torch.no_grad():
        change = strength * np.outer(unit(left), unit(right))
        weight.add_(torch.from_numpy(change).to(weight.dtype))


@pytest.fixture
def language():
    return Language()


def centred(weight):
    table = weight.detach().double().numpy()[: len(Tokenizer())]
    return table - table.mean(axis=0)


@pytest.mark.parametrize(
    ("layer", "norm"),
    [("q_proj", "input_layernorm"), ("up_proj", "post_attention_layernorm")],
)
def test_inputs_are_read_through_the_norm_before_the_layer(language, layer, norm):
    block = language.layers[0]
    weight = getattr(block, layer).weight
    scale = getattr(block, norm).weight.detach().double().numpy()
    token = centred(language.embed_tokens.weight)[77]
    plant(weight, np.ones(len(weight)), token / scale)
    found = rt.components(language, f"layers.0.{layer}", k=2, tokenizer=Tokenizer())
    first, second = (direction.inputs for direction in found)
    assert first.along[0][0] == "'w77'" or first.against[0][0] == "'w77'"
    assert first.closest > 0.9
    assert first.closest > 1.3 * first.chance
    assert second.closest < 1.2 * second.chance
    assert found.random.inputs.closest < 1.2 * found.random.inputs.chance
    assert f"with the scale of layers.0.{norm}" in " ".join(found.notes)


def test_outputs_are_read_through_the_last_norm(language):
    scale = language.norm.weight.detach().double().numpy()
    token = centred(language.lm_head.weight)[5]
    plant(language.layers[0].down_proj.weight, token / scale, np.ones(64))
    (first,) = rt.components(language, "layers.0.down_proj", k=1, tokenizer=Tokenizer())
    assert "'w5'" in (first.outputs.along[0][0], first.outputs.against[0][0])
    assert first.outputs.closest > 0.9
    assert first.inputs.kind == "entries"
    assert first.beyond_noise


def test_ends_over_the_vocabulary_are_tokens(language):
    left = np.zeros(WORDS)
    left[[3, 8]] = 1.0, -1.0
    plant(language.lm_head.weight, left, np.ones(WIDTH))
    (first,) = rt.components(language, "lm_head", k=1, tokenizer=Tokenizer())
    assert {first.outputs.along[0][0], first.outputs.against[0][0]} == {"'w3'", "'w8'"}


def test_a_layer_that_tokens_do_not_reach_is_said_so():
    model = nn.Sequential(nn.Linear(30, 20))
    model.get_input_embeddings = lambda: nn.Embedding(WORDS, WIDTH)
    found = rt.components(model, "0", k=1, tokenizer=Tokenizer())
    assert "neither reads nor writes" in found.notes[0]
    assert found.directions[0].inputs.kind == "entries"


def test_an_image_is_the_image():
    torch.manual_seed(0)
    model = rt.MLP([64, 100, 10])
    picture = np.zeros((8, 8))
    picture[2, 1:6] = 1.0
    plant(model.layers[0].weight, np.ones(100), picture.ravel())
    found = rt.components(model, "layers.0", k=3, image_shape=(8, 8))
    image = found.directions[0].inputs.image
    assert np.corrcoef(image.ravel(), picture.ravel())[0, 1] > 0.98
    assert [direction.beyond_noise for direction in found] == [True, False, False]
    assert found.random.inputs.image.shape == (8, 8)
    assert found.random.beyond_noise is None


@pytest.mark.parametrize("channels", [1, 3])
def test_kernels_over_colours_are_images(channels):
    model = nn.Sequential(nn.Conv2d(channels, 32, 5))
    found = rt.components(model, "0", k=2)
    shape = (5, 5) if channels == 1 else (5, 5, 3)
    assert found.directions[0].inputs.image.shape == shape
    assert (
        rt.components(nn.Sequential(nn.Conv2d(4, 32, 3)), "0", k=1).directions[0].inputs.image
        is None
    )


def test_examples_that_drive_a_direction():
    torch.manual_seed(0)
    model = rt.MLP([20, 30, 10])
    batch = torch.randn(50, 20)
    found = rt.components(model, "layers.1", k=2, batch=batch)
    hidden = torch.relu(model.layers[0](batch)).detach().double().numpy()
    W = model.layers[1].weight.detach().double().numpy()
    _, _, vectors = np.linalg.svd(W)
    for direction, vector in zip(found, vectors[:2], strict=True):
        values = hidden @ vector
        order = np.argsort(values)
        ends = {f"#{order[0]}", f"#{order[-1]}"}
        assert {direction.examples.along[0][0], direction.examples.against[0][0]} == ends
        assert abs(direction.examples.along[0][1]) == pytest.approx(
            np.abs(values[int(direction.examples.along[0][0][1:])]), rel=1e-4
        )
    assert model.training


def test_places_of_an_image_and_of_a_text(language):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1, padding_mode="reflect"))
    images = torch.zeros(4, 3, 10, 10)
    kernel = rt.components(net, "0", k=1).directions[0].inputs.image
    images[2, :, 3:6, 5:8] = torch.from_numpy(np.moveaxis(kernel, -1, 0).copy())
    (first,) = rt.components(net, "0", k=1, batch=images)
    assert first.examples.along[0][0] == "#2 at 2, 3"  # stride 2: the place of the output
    assert first.examples.along[0][1] == pytest.approx(1.0, abs=1e-5)
    ids = torch.arange(12)[None]
    found = rt.components(
        language, "layers.0.up_proj", k=1, batch={"input_ids": ids}, tokenizer=Tokenizer()
    )
    what, _ = found.directions[0].examples.along[0]
    at = int(what.split("at ")[1].split(":")[0])
    assert what.endswith(f"w{at}")
    assert len(found.directions[0].examples.along) == 8


@pytest.fixture(scope="module")
def shown():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 30), nn.Linear(30, 4))
    return rt.components(model, "0", k=3, image_shape=(4, 4), batch=torch.randn(9, 16))


def test_it_can_be_shown(shown):
    text = repr(shown)
    assert text.splitlines()[0].startswith("LayerComponents 0: 30 x 16, ")
    assert text.count("singular value") == 3
    assert "random direction" in text
    page = shown._repr_html_()
    assert page.count("<img") == 4
    assert page.count("<tr>") == 5
    figure = shown.plot(Figure())
    assert len(figure.axes) == 3 * 4
    content = json.loads(json.dumps(shown.to_dict()))
    assert len(content["directions"]) == len(shown) == 3
    assert np.array(content["directions"][0]["in"]["image"]).shape == (4, 4)


def test_names_are_escaped():
    model = nn.ModuleDict({"<b>$x$": nn.Linear(8, 9)})
    found = rt.components(model, "<b>$x$", k=1)
    assert "<b>" not in found._repr_html_()
    found.plot(Figure()).canvas.draw()


MODEL = nn.Sequential(nn.Linear(16, 30), nn.ReLU(), nn.Linear(30, 4))


@pytest.mark.parametrize(
    ("layer", "options", "words"),
    [
        ("1", {}, r"is none of the \d matrices of this Sequential"),
        ("0.wight", {}, r"rt\.weight_matrices"),
        (3, {}, r"`layer` is a int; expected the name"),
        ("0", {"k": 17}, r"`k` is 17; expected at most 16, the numerical rank"),
        ("0", {"k": 0}, r"`k` is 0"),
        ("0", {"image_shape": (3, 5)}, r"has 15 pixels; expected 16, the number of inputs of '0'"),
        ("0", {"image_shape": (2, 2, 4)}, r"1 or 3 channels"),
        ("0", {"image_shape": "x"}, r"`image_shape` is 'x'"),
        ("0", {"tokenizer": "gpt2"}, r"`tokenizer` is a str; expected a tokenizer"),
        ("0", {"tokenizer": Tokenizer()}, r"for a Sequential; expected a model with get_input"),
        ("0", {"batch": 3}, r"`batch` is a int; expected a tensor"),
        ("0", {"nose": "auto"}, r"nose"),
    ],
)  # fmt: skip
def test_wrong_input(layer, options, words):
    with pytest.raises(
        (InvalidValueError, InvalidOptionError, InvalidOptionTypeError), match=words
    ):
        rt.components(MODEL, layer, **options)


def test_a_tokenizer_of_another_model(language):
    language.embed_tokens = nn.Embedding(20, WIDTH)
    with pytest.raises(InvalidOptionError, match=r"has 290 tokens, and the model 20 embeddings"):
        rt.components(language, "layers.0.q_proj", tokenizer=Tokenizer())


def test_several_matrices_of_one_layer():
    model = nn.Sequential(nn.MultiheadAttention(16, 2))
    with pytest.raises(InvalidValueError, match=r"has several matrices: '0\["):
        rt.components(model, "0")
    assert rt.components(model, "0[q]", k=1).shape == (16, 16)
