"""The formulas of FLOPs: against torch's counter on the embedded model, whose attention is run as plain products."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from llava.eval.run.generate import prompt_ids
from llava.model.vision.image_tokens import ImageTokens
from qlip import Leaves
from scripts.bench.evidence.answering.sets import QuestionSet, draw_set
from scripts.bench.evidence.answering.subject import EncodedPicture, Subject
from scripts.bench.evidence.answering.variants import CLIP, SHIPPED, Variant
from scripts.bench.evidence.rivals.reduction import Kept, average_leaves, merge_similar, prune_by_cls, prune_outliers


@pytest.fixture(scope="module")
def questions() -> QuestionSet:
    return draw_set("12-24 px", "validation", 1)


@torch.inference_mode()
def counted(work: Callable[[], object]) -> int:
    """What torch counts; its counter knows attention only as products, and the CPU's fused kernel not at all."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


QUADTREES = [
    SHIPPED,
    Variant("uniform", {"alpha": 0.0, "max_tokens": None}),
    Variant("thumbnail", {"thumbnail": True}),
    Variant("large leaves", {"coarsest": "any", "max_tokens": 40}),
]


@pytest.mark.parametrize("way", QUADTREES, ids=lambda way: way.name)
def test_encoding_a_picture_costs_what_torch_counts(subject: Subject, questions: QuestionSet, way: Variant) -> None:
    encoded: list[EncodedPicture] = []
    assert counted(lambda: encoded.extend(subject.encode_pictures(way, questions.pictures))) == encoded[0].flops


def test_clip_costs_what_torch_counts_without_its_last_layer_which_nothing_reads(
    subject: Subject, questions: QuestionSet
) -> None:
    encoded: list[EncodedPicture] = []
    found = counted(lambda: encoded.extend(subject.encode_pictures(CLIP, questions.pictures)))
    assert found - subject.cost.tower.layer.run(65) == encoded[0].flops


@pytest.mark.parametrize("way", [CLIP, SHIPPED], ids=lambda way: way.name)
def test_prefill_costs_what_torch_counts(subject: Subject, questions: QuestionSet, way: Variant) -> None:
    (encoded,) = subject.encode_pictures(way, questions.pictures)
    ids = prompt_ids(subject.engine_of(way), "What is in the picture?")
    model = subject.engine_of(way).model
    found = counted(lambda: model(input_ids=ids[None], images=[encoded.tokens], logits_to_keep=1))
    assert found == subject.cost.prefill(len(ids) - 1 + len(encoded.tokens.features))


@pytest.mark.parametrize("keep", [20, 47])
@pytest.mark.parametrize(
    "reduce",
    [
        lambda vision, image, _: average_leaves(vision, image, Leaves.uniform((9, 11))),
        lambda vision, image, keep: prune_by_cls(vision, image, keep),
        lambda vision, image, keep: prune_by_cls(vision, image, keep, contextual=0.0),
        lambda vision, image, _: prune_outliers(vision, image),
        merge_similar,
    ],
    ids=["leaves", "cls+merge", "cls", "prumerge", "tome"],
)
def test_a_rival_costs_what_torch_counts(subject: Subject, reduce: Callable[..., Kept], keep: int) -> None:
    vision = subject.engine.model.get_vision_tower().vision_tower
    image = torch.randn(3, 9 * 14, 11 * 14, generator=torch.Generator().manual_seed(2))
    kept: list[Kept] = []
    assert counted(lambda: kept.append(reduce(vision, image, keep))) == kept[0].flops


def test_two_passes_cost_both(subject: Subject, questions: QuestionSet) -> None:
    text, way = "How many objects are there?", Variant("crop", {}, "crop")
    encoded: list[list[EncodedPicture]] = []
    found = counted(lambda: encoded.extend(subject.encode_for_questions(way, questions.pictures, [[text]])))
    assert found - 2 * subject.cost.tower.layer.run(65) == encoded[0][0].flops


def test_asking_first_costs_both_passes(subject: Subject, questions: QuestionSet) -> None:
    text, way = "How many objects are there?", Variant("asked", {"budget": "question", "max_tokens": None})
    encoded: list[list[EncodedPicture]] = []
    found = counted(lambda: encoded.extend(subject.encode_for_questions(way, questions.pictures, [[text]])))
    assert found == encoded[0][0].flops
    assert len(encoded[0][0].tokens.features) > 64


def test_a_cell_counts_the_mean_over_questions_with_their_own_prompts(subject: Subject, questions: QuestionSet) -> None:
    found = subject.examine(SHIPPED, questions)
    (encoded,) = subject.encode_pictures(SHIPPED, questions.pictures)
    tokens: ImageTokens = encoded.tokens
    lengths = [len(prompt_ids(subject.engine, item.text)) - 1 for item in questions.questions[0]]
    whole = [encoded.flops + subject.cost.prefill(len(tokens.features) + length) for length in lengths]
    assert found.flops == [pytest.approx(sum(whole) / len(whole))]
    assert found.tokens == [len(tokens.features)]
