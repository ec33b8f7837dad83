"""The benchmark's MoDeGPT: exact where nothing is cut, its parts right where something is."""

import importlib.util
from pathlib import Path

import pytest
import torch
import transformers

PEER = Path(__file__).parents[2] / "benchmarks/compression/peers/modegpt.py"


@pytest.fixture(scope="module")
def peer():
    spec = importlib.util.spec_from_file_location("modegpt_peer", PEER)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=64,
        hidden_size=48,
        intermediate_size=80,
        num_hidden_layers=2,
        num_attention_heads=6,
        num_key_value_heads=2,
        max_position_embeddings=64,
    )
    return transformers.LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module")
def batches():
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(64, (2, 40), generator=generator) for _ in range(3)]


def logits(model, ids):
    with torch.no_grad():
        return model(ids).logits


def test_nothing_is_cut_at_a_share_of_one(peer, model, batches):
    small, found = peer.modegpt(model, batches, 1.0)
    assert found["share"] == pytest.approx(1.0)
    torch.testing.assert_close(logits(small, batches[0]), logits(model, batches[0]))


def test_every_part_is_exact_when_it_keeps_all(peer, model, batches):
    # All hidden units, planes and ranks pass through the algebra: only rounding may remain.
    small, _ = peer.modegpt(model, batches, 1.0)
    for block, at in zip(small.model.layers, peer.moments(model, batches), strict=True):
        peer.cut_mlp(block.mlp, at["hidden"], 1.0, 1e-9)
        peer.cut_query_key(block.self_attn, at["query"], at["key"], 1.0)
        peer.cut_value_output(block.self_attn, at["input"], 1.0, 1e-9)
    assert not torch.equal(
        small.model.layers[0].self_attn.v_proj.weight, model.model.layers[0].self_attn.v_proj.weight
    )
    # float32 weights and activations of order one: 2e-5 is some hundred roundings.
    torch.testing.assert_close(
        logits(small, batches[0]), logits(model, batches[0]), atol=2e-5, rtol=1e-4
    )


def test_the_share_is_kept_and_the_loss_grows_as_it_falls(peer, model, batches):
    errors = []
    for share in (0.9, 0.7, 0.5):
        small, found = peer.modegpt(model, batches, share, temperature=10.0)
        assert found["share"] == pytest.approx(share, abs=1e-6)
        errors.append(float((logits(small, batches[0]) - logits(model, batches[0])).norm()))
    assert errors == sorted(errors)


def test_planes_of_rotation_go_together_and_for_all_queries_of_a_key(peer, model, batches):
    small, _ = peer.modegpt(model, batches, 0.5, temperature=1e6)
    attention = small.model.layers[0].self_attn
    gone = [
        (projection.weight.view(heads, 8, 48) == 0).all(2)
        for projection, heads in ((attention.q_proj, 6), (attention.k_proj, 2))
    ]
    assert gone[1].sum() == 8
    assert torch.equal(gone[0], gone[1].repeat_interleave(3, 0))
    assert torch.equal(gone[1][:, :4], gone[1][:, 4:])


def test_the_moment_of_queries_is_that_of_the_rotated_ones(peer, model, batches):
    # Rotation keeps the norm of every plane: the trace of the moment is that of the plain queries.
    found = peer.moments(model, batches[:1])[0]
    x = model.model.layers[0].input_layernorm(model.model.embed_tokens(batches[0]))
    queries = model.model.layers[0].self_attn.q_proj(x)
    trace = found["query"].diagonal(dim1=1, dim2=2).sum()
    torch.testing.assert_close(
        float(trace), float(queries.detach().square().sum()), rtol=1e-5, atol=0
    )


def test_down_is_refitted_to_the_outputs_of_all_units(peer):
    generator = torch.Generator().manual_seed(2)
    mixed = torch.randn(200, 6, generator=generator) @ torch.randn(6, 12, generator=generator)

    class Mlp(torch.nn.Module):
        def __init__(self):
            super().__init__()
            for name, shape in (("gate", (4, 12)), ("up", (4, 12)), ("down", (12, 5))):
                setattr(self, f"{name}_proj", torch.nn.Linear(*shape, bias=False))

    mlp = Mlp()
    wanted = mixed @ mlp.down_proj.weight.T
    hidden = (mixed.T @ mixed).double()
    peer.cut_mlp(mlp, hidden, 0.5, 1e-9)
    assert mlp.down_proj.in_features == 6
    # Six directions in all: six units carry them, whichever they are.
    rows = peer._chosen(torch.linalg.solve(peer._ridged(hidden, 1.0), hidden).diagonal(), 0.5)
    torch.testing.assert_close(
        mixed[:, rows] @ mlp.down_proj.weight.T, wanted, atol=1e-3, rtol=1e-3
    )
