"""The benchmark of costs: what its rows hold, that its peers do the same work, and what its tables say. No times."""

from __future__ import annotations

import json
import statistics
from dataclasses import replace
from functools import cache, partial

import pytest
import torch

from llava.mm_utils import process_images
from qlip import Leaves, QLIPConfig
from scripts.bench import cost, cost_table
from scripts.bench.cost_models import SHAPES, Shape, Subject, build_random, demo_scene, photograph
from scripts.bench.cost_stages import STAGES, CostVariant, Row, answer, matching, measure, recursive_quadtree
from scripts.bench.quadtree_times import photograph as quadtree_photograph

VISION = {
    "model_type": "clip_vision_model",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 112,
    "patch_size": 14,
}
TEXT = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "vocab_size": 64,
    "max_position_embeddings": 4096,
}
NATIVE = QLIPConfig(alpha=0.0, max_tokens=None, image_size=112)


def build(name: str = "tiny", dtype: torch.dtype = torch.float32, **text: int) -> Subject:
    torch.manual_seed(0)
    return build_random(name, Shape(VISION, {**TEXT, **text}), "cpu", dtype)


@pytest.fixture(scope="module")
def subject() -> Subject:
    return build()


@pytest.fixture
def image() -> torch.Tensor:
    """A photograph of 16 x 16 cells, as the QLIP tower takes it."""
    return quadtree_photograph("astronaut", 224)


@torch.inference_mode()
def test_both_towers_have_the_same_weights(subject):
    pixels = process_images([photograph(112, 0)], subject.qlip.image_processor, None)
    by_clip = subject.use_tower(None)(pixels)[0]
    by_qlip = subject.use_tower(NATIVE)(pixels)[0]
    torch.testing.assert_close(by_qlip, by_clip, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_model_of_7bs_shape_is_timed_from_picture_to_answer(dtype):
    subject = build("llava-7b", dtype)
    rows, left_out = cost_table.measure_model(subject, "cpu", [224], repeats=1, new_tokens=1)
    assert subject.model.dtype == subject.clip.dtype == subject.qlip.dtype == dtype
    assert [row.way for row in rows] == [
        "CLIP", "QLIP 144", "QLIP 288", "QLIP 576", "QLIP 1024", "QLIP 576, recursive",
    ]  # fmt: skip
    assert left_out == []
    for row in rows:
        absent = ("partition", "extraction") if row.way == "CLIP" else ()
        expected = [stage for stage in STAGES if stage not in absent]
        assert list(row.runs) == expected
    tokens = {row.way: row.tokens for row in rows}
    assert tokens["CLIP"] == 64
    assert 144 - 3 < tokens["QLIP 144"] <= 144
    assert tokens["QLIP 144"] < tokens["QLIP 288"] <= 256
    assert tokens["QLIP 576"] == tokens["QLIP 1024"] == tokens["QLIP 576, recursive"]


def test_a_model_without_a_decoder_is_timed_up_to_its_projector():
    subject = build(num_hidden_layers=0)
    clip, ours, peer = measure(
        subject,
        [cost_table.CLIP, cost_table.budget(100), *cost_table.recursive(cost_table.budget(100), "cpu")],
        size=224,
        repeats=1,
        new_tokens=2,
    )
    assert list(clip.runs) == ["prepare", "tower", "projector", "total"]
    assert list(ours.runs) == ["prepare", "partition", "extraction", "tower", "projector", "total"]
    assert list(peer.runs) == ["prepare", "partition", "extraction"]
    assert ours.median("total") == pytest.approx(ours.median("partition", "extraction", "tower", "projector"))


@pytest.mark.parametrize("budget", [64, 100, 200])
def test_without_a_budget_the_matching_threshold_gives_the_same_leaves(subject, image, budget):
    settings = QLIPConfig(criterion="gradient", coarsest="any", alpha=0.1, max_tokens=budget, split_order="score")
    tower = subject.use_tower(settings)
    wanted = tower.partition(image)
    found = matching(settings, image, tower)
    assert found.max_tokens is None
    cut = subject.use_tower(found).partition(image)
    assert len(wanted) - 9 <= len(cut) <= len(wanted)
    if len(cut) == len(wanted):  # no ties where the budget ends
        assert torch.equal(cut.boxes, wanted.boxes)


def test_a_tree_within_its_budget_keeps_its_threshold(subject, image):
    settings = QLIPConfig(criterion="gradient", coarsest="any", alpha=1.0, max_tokens=1024, split_order="score")
    assert matching(settings, image, subject.use_tower(settings)) == replace(settings, max_tokens=None)


@torch.inference_mode()
def test_the_recursive_quadtree_does_the_work_of_ours(subject, image):
    settings = QLIPConfig.paper(alpha=1.5)
    tower = subject.use_tower(settings)
    ours = tower([image])[0]
    assert 4 < len(ours) < 256
    unlike = replace(settings, alpha=0.0)
    subject.use_tower(unlike)  # the peer goes by its own threshold
    with recursive_quadtree(1.5, "cpu"):
        leaves = tower.partition(image)
        theirs = tower([image])[0]
    assert isinstance(leaves, Leaves)
    torch.testing.assert_close(theirs, ours, atol=1e-5, rtol=1e-5)
    assert len(tower.partition(image)) == 256


@pytest.mark.parametrize("settings", [None, QLIPConfig(criterion="structure"), QLIPConfig(coarsest="native")])
def test_settings_that_the_recursive_quadtree_does_not_know_are_refused(subject, image, settings):
    with pytest.raises(ValueError, match="gradient"):
        matching(settings, image, subject.qlip)


def test_an_answer_has_the_length_that_is_timed(subject, image):
    subject.use_tower(QLIPConfig(max_tokens=64))
    assert answer(subject, image, 5).shape == (1, 5)


@pytest.mark.parametrize("draw", [demo_scene, photograph])
def test_pictures_have_the_wanted_size_and_differ(draw):
    first, again, other = draw(126, 0), draw(126, 0), draw(126, 1)
    assert first.size == (126, 126) and first.mode == "RGB"
    assert first.tobytes() == again.tobytes() != other.tobytes()


def test_the_command_names_every_model():
    assert ("demo", *SHAPES) == cost.MODELS


@pytest.mark.parametrize("model", cost.MODELS)
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_every_way_has_a_name_of_its_own_and_peers_that_exist(model, device):
    for size in cost.SIZES:
        ways = cost_table.ways_of(model, device, size, cost.SIZES)
        names = [way.name for way in ways]
        assert len(set(names)) == len(names)
        assert ways[0].settings is None
        assert {way.same_leaves_as for way in ways} - {None} <= set(names)
        assert {way.recursive_on for way in ways} == {None, "cpu", device}


def test_a_table_shows_medians_and_ratios_to_its_peers():
    rows = [
        Row("m", 112, "CLIP", 64, {"prepare": [1.0], "tower": [10.0, 30.0, 20.0], "total": [25.0]}),
        Row("m", 112, "Q", 40, {"prepare": [2.0], "partition": [1.0], "extraction": [3.0], "total": [5.0]}),
        Row("m", 112, "R", 39.5, {"prepare": [2.0], "partition": [6.0], "extraction": [4.0]}),
    ]
    text = cost_table.table(rows, [cost_table.CLIP, CostVariant("Q"), CostVariant("R", {}, "cpu", "Q")])
    assert text.splitlines() == [
        "| picture | seen by | tokens | prepare | partition | extraction | tower | total"
        " | total / CLIP | quadtree / ours |",
        "|---|---|---|---|---|---|---|---|---|---|",
        "| 112 px | CLIP | 64 | 1.00 | – | – | 20.0 | 25.0 | 1.00 | – |",
        "| 112 px | Q | 40 | 2.00 | 1.00 | 3.00 | – | 5.00 | 0.20 | – |",
        "| 112 px | R | 39.5 | 2.00 | 6.00 | 4.00 | – | – | – | 2.50 |",
    ]


def test_the_command_writes_every_run_and_the_page_that_it_prints_and_says_what_it_left_out(
    tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(cost_table, "UNIFORM_CELLS", 20)
    monkeypatch.setattr(cost_table, "build", cache(cost_table.build))
    monkeypatch.setattr(cost_table, "measure_model", partial(cost_table.measure_model, new_tokens=1))
    file, page = tmp_path / "cost.json", tmp_path / "cost.md"
    flags = ["--models", "demo", "--sizes", "56", "70", "--repeats", "2"]
    assert cost.main([*flags, "--json", str(file)]) == 0
    printed = capsys.readouterr().out
    report = json.loads(file.read_text())
    assert {"device", "cores", "threads", "torch", "transformers"} <= set(report["machine"])
    assert report["models"] == {"demo": {"dtype": "float32", "repeats": 2}}
    assert [(row["size"], row["way"]) for row in report["rows"]] == [
        *((56, way.name) for way in cost_table.ways_of("demo", "cpu", 56, [56])),
        *((70, way.name) for way in cost_table.ways_of("demo", "cpu", 70, [70])[:-1]),
    ]
    for row in report["rows"]:
        assert {len(runs) for runs in row["runs_ms"].values()} == {2}
        assert row["median_ms"] == {stage: statistics.median(runs) for stage, runs in row["runs_ms"].items()}
        assert f"| {row['size']} px | {row['way']} | {row['tokens']:g} |" in printed
    assert report["left_out"] == ["demo: uniform, native size at 70 px (25 tokens)"]
    assert "uniform, native size at 70 px (25 tokens)" in printed
    rows = [Row("demo", row["size"], row["way"], row["tokens"], row["runs_ms"]) for row in report["rows"]]
    left_out = [text.removeprefix("demo: ") for text in report["left_out"]]
    monkeypatch.setattr(cost_table, "measure_model", lambda *_: (rows, left_out))  # the same once more
    assert cost.main([*flags, "--out", str(page)]) == 0
    assert capsys.readouterr().out == ""
    assert page.read_text(encoding="utf-8") == printed
    assert printed.startswith("# Cost by stage\n\n`python -m scripts.bench.cost --out docs/results/cost.md`; device ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--models", "llava-7b"], "on a GPU only"),
        (["--sizes", "100"], "100 is not a multiple of 14"),
        (["--repeats", "0"], "argument --repeats: '0' is not allowed"),
    ],
)
def test_what_cannot_be_measured_is_refused_at_once(arguments, message, capsys):
    with pytest.raises(SystemExit):
        cost.main(arguments)
    assert message in capsys.readouterr().err
