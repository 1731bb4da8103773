"""The measurements of docs/RESULTS.md: rivals against independent computations, resuming, and what tables say."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from transformers import CLIPVisionConfig, CLIPVisionModel

from llava.serve.engine import ChatEngine
from llava.utils import demo_model_path
from playground.model import sincos_2d
from playground.scenes import PRESETS, write_scenes
from qlip import Leaves, QLIPConfig, QLIPVisionModel, interpolate_positions, raster_positions
from scripts.bench.evidence.answer_log import AnswerLog
from scripts.bench.evidence.experiments import CLIP, EXPERIMENTS, SHIPPED
from scripts.bench.evidence.report import fill
from scripts.bench.evidence.rivals import Kept, merge_similar, prune_by_cls, raster_places
from scripts.bench.evidence.run import marks
from scripts.bench.evidence.scene_sets import KINDS, SPLITS
from scripts.bench.evidence.sets import draw_set, read_set
from scripts.bench.evidence.settings import Way
from scripts.bench.evidence.tables import Answers, shortfalls, table
from scripts.bench.evidence.ways import Subject, interpolate_scrambled

UNIFORM = QLIPConfig(alpha=0.0, max_tokens=None)


@pytest.fixture(scope="module")
def tower() -> CLIPVisionModel:
    torch.manual_seed(0)
    config = CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=4, num_attention_heads=4, image_size=112, patch_size=14
    )
    return CLIPVisionModel._from_config(config, attn_implementation="eager").eval()


@pytest.fixture(scope="module")
def image() -> torch.Tensor:
    return torch.randn(3, 112, 112, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def subject() -> Subject:
    return Subject(demo_model_path(), {}, "cpu", 4096)


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


def test_places_follow_the_rule_for_leaves():
    leaves = Leaves.uniform((10, 13))
    kept = Kept(torch.zeros(len(leaves), 1), leaves.centres, leaves.grid)
    torch.testing.assert_close(raster_places(kept, 8), raster_positions(leaves, 8))


def test_the_scrambled_reshape_is_exact_at_the_native_grid_and_wrong_elsewhere():
    table = sincos_2d(24, 48)
    torch.testing.assert_close(interpolate_scrambled(table, Leaves.uniform((24, 24))), table)
    larger = Leaves.uniform((33, 33))
    right = interpolate_positions(table, larger)
    assert (interpolate_scrambled(table, larger) - right).norm() / right.norm() > 1


def test_every_way_has_valid_settings_and_a_name_of_its_own():
    for experiment in EXPERIMENTS.values():
        names = [way.name for way in experiment.ways]
        assert len(set(names)) == len(names)
        keys = [json.dumps(way.key(QLIPConfig(coarsest="native")), sort_keys=True) for way in experiment.ways]
        assert len(keys) == len(experiment.ways)


def test_splits_differ_from_each_other_and_from_the_training_scenes():
    assert len({1, 2, 3, *SPLITS.values()}) == 3 + len(SPLITS)
    first = draw_set("base", "validation", 2)
    again = draw_set("base", "validation", 3)
    assert [p.tobytes() for p in first.pictures] == [p.tobytes() for p in again.pictures[:2]]
    assert first.questions[0] == again.questions[0]
    assert draw_set("base", "test", 1).pictures[0].tobytes() != first.pictures[0].tobytes()


def test_an_unknown_set_is_named():
    with pytest.raises(ValueError, match="'huge'.*base.*validation"):
        draw_set("huge", "validation")


@pytest.mark.parametrize("way", [CLIP, SHIPPED, Way("small", {"image_size": 112})], ids=lambda way: way.name)
def test_examining_judges_what_a_chat_would_answer(subject, way):
    questions = draw_set("12-24 px", "validation", 3)
    tokens, right = subject.examine(way, questions)
    engine = subject.engine_of(way)
    if way.settings is not None:
        engine.model.get_vision_tower().settings = subject.settings(way)
    for picture, asked, judged in zip(questions.pictures, questions.questions, right, strict=True):
        said = [engine.ask(item.text, [picture]).lower() for item in asked]
        assert [text == item.answer for text, item in zip(said, asked, strict=True)] == judged
    assert isinstance(engine, ChatEngine)
    assert tokens == [64] * 3 if way is not SHIPPED else all(64 <= count <= 128 for count in tokens)


@pytest.mark.parametrize("rival", ["cls", "cls+merge", "tome"])
def test_rivals_see_as_many_tokens_as_they_are_allowed(subject, rival):
    questions = draw_set("12-24 px", "validation", 1)
    (seen,) = subject.see(Way(rival, {"max_tokens": 70}, rival), questions.pictures)
    assert len(seen.features) == len(seen.span.positions) == 70
    assert seen.span.length == 64


def test_a_prior_that_is_not_given_is_named(subject):
    with pytest.raises(ValueError, match="'mlp'.*grid"):
        subject.see(Way("mlp", {}, prior="grid"), [])


def test_a_folder_of_questions_reads_as_a_set(tmp_path):
    write_scenes(tmp_path, PRESETS["base"], 5, 2)
    questions = read_set(tmp_path)
    assert len(questions.pictures) == 2
    assert [len(row) for row in questions.questions] == [9, 9]
    found = marks(questions, [[True] * 9, [False] * 9])
    assert found["right"]["colour"] == "1100"
    assert found["pictures"]["colour"] == [0, 0, 1, 1]


def journal_row(way: Way, model: str, right: dict[str, str], name: str = "base", tokens: int = 64) -> dict:
    count = len(right["colour"])
    pictures = {kind: list(range(count)) for kind in right}
    return {
        "model": model, "split": "test", "set": name, "scenes": count, "way": way.key(QLIPConfig()),
        "right": right, "pictures": pictures, "tokens": [tokens] * count, "seconds": 0.0,
    }  # fmt: skip


def test_a_half_written_line_is_dropped_and_the_log_continues(tmp_path):
    path = tmp_path / "answers.jsonl"
    first = journal_row(CLIP, "a", dict.fromkeys(KINDS, "10"))
    AnswerLog(path).add(first)
    with path.open("a") as file:
        file.write('{"model": "b", ')
    log = AnswerLog(path)
    assert log.has(first)
    assert not log.has({**first, "model": "b"})
    log.add({**first, "model": "b"})
    assert [json.loads(line)["model"] for line in path.read_text().splitlines()] == ["a", "b"]


def test_a_table_pools_checkpoints_and_says_what_was_not_measured(tmp_path):
    path = tmp_path / "answers.jsonl"
    log = AnswerLog(path)
    log.add(journal_row(CLIP, "a", dict.fromkeys(KINDS, "1100")))
    log.add(journal_row(CLIP, "b", dict.fromkeys(KINDS, "1111")))
    text = table(Answers([path], "test", QLIPConfig()), [CLIP, SHIPPED], "base")
    assert "| CLIP | 64.0 | **75.0** [50.0, 100.0] | 50.0 / 100.0 |" in text
    assert "| QLIP as shipped | not measured |" in text


def test_shortfalls_are_measured_from_the_best_way_that_is_cheap_enough(tmp_path):
    path = tmp_path / "answers.jsonl"
    log = AnswerLog(path)
    dear = replace(SHIPPED, name="dear", settings={"alpha": 0.0})
    for way, marked, tokens in ((CLIP, "1100", 64), (SHIPPED, "1110", 96), (dear, "1111", 200)):
        log.add(journal_row(way, "a", dict.fromkeys(KINDS, marked), tokens=tokens))
    text = shortfalls(Answers([path], "test", QLIPConfig()), [CLIP, SHIPPED, dear], ["base"])
    assert "| CLIP | 64.0 | 50.0 | 0.0 | 25.0 | 25.0 (base, colour) |" in text
    assert "| QLIP as shipped | 96.0 | 75.0 | -25.0 | 0.0 | 0.0 (base, colour) |" in text


def test_marks_are_filled_again_and_again():
    text = "before\n<!-- a: b -->\n<!-- end a: b -->\nafter\n"
    once = fill(text, {"a: b": "| 1 |"})
    assert once == "before\n<!-- a: b -->\n| 1 |\n<!-- end a: b -->\nafter\n"
    assert fill(once, {"a: b": "| 2 |"}) == once.replace("1", "2")
    with pytest.raises(ValueError, match="'a: b'.*c"):
        fill(text, {"c": ""})
