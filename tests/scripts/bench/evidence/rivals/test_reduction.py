"""Other ways to few tokens, against their papers' rules written out naively."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from transformers import CLIPVisionConfig, CLIPVisionModel

from qlip import Leaves, QLIPConfig, QLIPVisionModel, raster_positions
from scripts.bench.evidence.rivals.reduction import (
    Kept,
    average_leaves,
    merge_similar,
    prune_by_cls,
    prune_outliers,
    raster_places,
)

UNIFORM = QLIPConfig(alpha=0.0, max_tokens=None)


@pytest.fixture(scope="module")
def tower() -> CLIPVisionModel:
    torch.manual_seed(0)
    config = CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=4, num_attention_heads=4, image_size=112, patch_size=14
    )
    model = CLIPVisionModel._from_config(config, attn_implementation="eager").eval()
    for layer in model.encoder.layers:
        layer.self_attn.k_proj.weight.data *= 6  # else attention is the same everywhere
        layer.self_attn.q_proj.weight.data *= 6
    return model


@pytest.fixture(scope="module")
def image() -> torch.Tensor:
    return torch.randn(3, 112, 112, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
@pytest.mark.parametrize("reduce", [lambda *a: prune_by_cls(*a, contextual=0.0), prune_by_cls, merge_similar])
def test_a_rival_that_keeps_every_token_gives_the_towers_own_features(tower, image, reduce):
    own = tower(image[None], output_hidden_states=True).hidden_states[-2][0, 1:]
    kept = reduce(QLIPVisionModel(tower, UNIFORM), image, 64)
    if reduce is prune_by_cls:  # merged from one token each
        assert len(kept.features) == 64
    torch.testing.assert_close(kept.features, own, atol=1e-5, rtol=1e-5)
    assert torch.equal(raster_places(kept, 8), torch.arange(64.0))


@torch.no_grad()
def test_pruning_keeps_the_patches_that_cls_attends_to_most(tower, image):
    seen = tower(image[None], output_hidden_states=True, output_attentions=True)
    wanted = seen.attentions[-2][0, :, 0, 1:].mean(0).topk(20).indices.sort().values
    kept = prune_by_cls(QLIPVisionModel(tower, UNIFORM), image, 20, contextual=0.0)
    torch.testing.assert_close(kept.features, seen.hidden_states[-2][0, 1:][wanted], atol=1e-5, rtol=1e-5)
    assert torch.equal(kept.centres[:, 0] * 8 + kept.centres[:, 1], wanted.float())


@torch.no_grad()
def test_contextual_tokens_are_means_of_what_pruning_leaves(tower, image):
    model = QLIPVisionModel(tower, UNIFORM)
    own = tower(image[None], output_hidden_states=True).hidden_states[-2][0, 1:]
    one = prune_by_cls(model, image, 11, contextual=1 / 11)
    ten = prune_by_cls(model, image, 10, contextual=0.0)
    dominant = (ten.centres[:, 0] * 8 + ten.centres[:, 1]).long()
    rest = torch.ones(64, dtype=torch.bool).index_fill(0, dominant, False)
    extra = [row for row in one.features if not any(torch.allclose(row, other, atol=1e-5) for other in ten.features)]
    assert len(extra) == 1
    torch.testing.assert_close(extra[0], own[rest].mean(0), atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("keep", [16, 33, 50])
def test_merging_ends_with_the_wanted_number_and_keeps_the_centre_of_mass(tower, image, keep):
    kept = merge_similar(QLIPVisionModel(tower, UNIFORM), image, keep)
    assert len(kept.features) == len(kept.centres) == keep
    assert kept.centres.min() >= 0 and kept.centres.max() <= 7
    assert torch.isfinite(kept.features).all()


@torch.no_grad()
def test_merging_joins_the_pairs_that_are_most_alike(tower, image):
    """Against a loop over pairs, in a tower of which only the first layer is read."""
    first = QLIPVisionModel(tower, UNIFORM, select_layer=1)
    hidden = tower(image[None], output_hidden_states=True).hidden_states[0][0]
    layer = tower.encoder.layers[0]
    normed = layer.layer_norm1(hidden)
    attended = hidden + layer.self_attn(normed[None])[0][0]
    keys = layer.self_attn.k_proj(normed)
    pairs = []
    for a in range(2, 65, 2):
        likeness = {b: F.cosine_similarity(keys[a], keys[b], dim=0).item() for b in range(1, 65, 2)}
        partner = max(likeness, key=likeness.__getitem__)
        pairs.append((likeness[partner], a, partner))
    groups = {b: [b] for b in range(1, 65, 2)} | {a: [a] for a in range(0, 65, 2)}
    for _, a, b in sorted(pairs, reverse=True)[:14]:
        groups[b].append(a)
        del groups[a]
    merged = torch.stack([attended[members].mean(0) for key, members in groups.items() if key != 0])
    wanted = merged + layer.mlp(layer.layer_norm2(merged))
    got = merge_similar(first, image, 50).features
    assert (got[:, None] - wanted).abs().amax(-1).amin(1).max() < 1e-4


@torch.no_grad()
@pytest.mark.parametrize("neighbours", [3, 32, 1000])
def test_outliers_of_cls_attention_are_kept_and_take_up_their_most_similar_tokens(tower, image, neighbours):
    seen = tower(image[None], output_hidden_states=True, output_attentions=True)
    patches, layer = seen.hidden_states[-2][0, 1:], tower.encoder.layers[2]
    attention = seen.attentions[-2][0, :, 0, 1:].mean(0).tolist()
    keys = layer.self_attn.k_proj(layer.layer_norm1(seen.hidden_states[-3][0]))[1:]
    ranked = sorted(attention)
    low, high = (ranked[15] + 0.75 * (ranked[16] - ranked[15]), ranked[47] + 0.25 * (ranked[48] - ranked[47]))
    chosen = [i for i, value in enumerate(attention) if value > high + 1.5 * (high - low)]
    wanted = []
    for i in chosen:
        others = [j for j in range(64) if j != i]
        others.sort(key=lambda j: -F.cosine_similarity(keys[i], keys[j], dim=0).item())
        wanted.append(patches[i] + sum(attention[j] * patches[j] for j in others[:neighbours]))
    kept = prune_outliers(QLIPVisionModel(tower, UNIFORM), image, neighbours)
    assert 0 < len(chosen) < 64
    assert (kept.centres[:, 0] * 8 + kept.centres[:, 1]).tolist() == chosen
    torch.testing.assert_close(kept.features, torch.stack(wanted), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_attention_without_outliers_keeps_the_greatest(tower):
    flat = QLIPVisionModel(tower, UNIFORM)
    kept = prune_outliers(flat, torch.zeros(3, 28, 28))  # four cells: no value is beyond their quartiles
    assert len(kept.features) == 1


@torch.no_grad()
def test_averaging_after_the_tower_is_the_mean_over_each_leafs_cells(tower, image):
    own = tower(image[None], output_hidden_states=True).hidden_states[-2][0, 1:].view(8, 8, -1)
    corners = [(row, col, 1) for row in range(2) for col in range(2)]
    blocks = [(row, col, 2) for row in range(0, 8, 2) for col in range(0, 8, 2) if (row, col) != (0, 0)]
    boxes = sorted(corners + blocks)
    kept = average_leaves(QLIPVisionModel(tower, UNIFORM), image, Leaves(torch.tensor(boxes), (8, 8)))
    wanted = [own[r : r + size, c : c + size].mean((0, 1)) for r, c, size in boxes]
    torch.testing.assert_close(kept.features, torch.stack(wanted), atol=1e-5, rtol=1e-5)


def test_places_follow_the_rule_for_leaves():
    leaves = Leaves.uniform((10, 13))
    kept = Kept(torch.zeros(len(leaves), 1), leaves.centres, leaves.grid, 0)
    torch.testing.assert_close(raster_places(kept, 8), raster_positions(leaves, 8))
