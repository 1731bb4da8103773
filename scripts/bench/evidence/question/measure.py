"""Scenes over photographs, and what is answered about them where the scores or the question decide on the tokens.

A question's tree is its own, so tokens are counted by question.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from llava.eval.run.answerer import Answerer, same_answer
from llava.eval.run.generate import prompt_ids
from llava.model.vision.encoding import encode_prepared
from llava.model.vision.image_tokens import ImageTokens
from llava.model.vision.prepared_image import PreparedImage, prepare_leaves
from llava.model.vision.question_budget import attention_on_images
from llava.serve.engine import ChatEngine
from playground.presets import PRESETS
from playground.questions import KINDS, V_STAR, Question, scene_questions
from playground.scenes import Scene, scene
from qlip import QLIPConfig
from qlip.tools.intervals import Estimate, mean_interval
from scripts.bench.evidence.pages.tables import interval
from scripts.bench.evidence.question.cost import prefill_flops
from scripts.markdown_table import join_values, table_head, table_row

COLUMNS = ("existence", "count", "listing")


@dataclass(frozen=True)
class BudgetVariant:
    """One way to spend tokens; the row of a table."""

    name: str
    settings: QLIPConfig
    layer: int | None = None
    """Of the language model, whose attention is read; None for the middle one."""


def make_ways(own: QLIPConfig, native: int, layers: Sequence[int]) -> list[BudgetVariant]:
    """Lists CLIP's view, the scores at several budgets, and the question at several shares; then other `layers`.

    Args:
        own: the checkpoint's settings.
        native: tokens of an unsplit square image.
        layers: beside the middle one.
    """
    ways = [BudgetVariant("unsplit, CLIP's view", replace(own, alpha=float("inf")))]
    for order in ("score", "side"):
        for share in (0.2, 0.3, 0.5, 1.0):
            held = replace(own, max_tokens=int(native * (1 + share)), split_order=order)
            ways.append(BudgetVariant(f"score, {1 + share:.1f} x, order {order}", held))
    asking = replace(own, budget="question", max_tokens=None)
    for score, question in ((0.0, 0.15), (0.0, 0.3), (0.1, 0.1), (0.15, 0.15), (0.2, 0.3), (0.3, 0.3), (0.3, 0.5)):
        shares = replace(asking, score_share=score, question_share=question)
        ways.append(BudgetVariant(f"question {question:.2f}, scores {score:.2f}", shares))
    return ways + [BudgetVariant(f"question and scores as shipped, layer {layer}", asking, layer) for layer in layers]


def choose_ways(ways: Sequence[BudgetVariant], names: Sequence[str] | None) -> list[BudgetVariant]:
    """Chooses ways by name, in their own order; all by default.

    Raises:
        ValueError: there is none of a name.
    """
    known = [way.name for way in ways]
    if unknown := [name for name in names or () if name not in known]:
        raise ValueError(f"there is no way {unknown[0]!r}; allowed are {', '.join(known)}")
    return [way for way in ways if names is None or way.name in names]


def draw_scenes(
    sizes: tuple[int, int], seed: int, count: int, photos: str = "validation"
) -> Iterator[tuple[Scene, list[Question]]]:
    """Draws scenes of 448 pixels over photographs of a split, with one question of each kind about each."""
    spec = replace(PRESETS["detail"], object_size=sizes, backgrounds=("photo",), photos=photos)
    for index in range(count):
        made = scene(spec, seed, index)
        yield made, scene_questions(made.objects, spec.size, np.random.default_rng((seed, index, 2)), KINDS)


class Tally:
    """Right answers and tokens of one way, by question."""

    def __init__(self) -> None:
        self.right: dict[str, list[bool]] = {kind: [] for kind in KINDS}
        self.first: list[int] = []
        self.second: list[int] = []

    def percent(self, kinds: Sequence[str]) -> float:
        """Computes the accuracy, the mean over kinds, in percent."""
        return 100 * float(np.mean([np.mean(self.right[kind]) for kind in kinds]))


def accuracy(tallies: Sequence[Tally], kinds: Sequence[str]) -> Estimate:
    """Computes the accuracy of several checkpoints on the same scenes in percent; a scene's answers are one group."""
    marks = [
        (100.0 * right, scene)
        for tally in tallies
        for kind in kinds
        for scene, right in enumerate(tally.right[kind])  # each scene has one question of a kind
    ]
    return mean_interval([mark for mark, _ in marks], [scene for _, scene in marks])


@torch.inference_mode()
def prepare_for_questions(
    engine: ChatEngine, way: BudgetVariant, image: Image.Image, asked: Sequence[Question]
) -> list[PreparedImage]:
    """Prepares an image for each question under one way."""
    cutter = engine.model.get_vision_tower().image_processor.cutter
    prepared = prepare_leaves(image, cutter, way.settings)
    if prepared.question is None:
        return [prepared] * len(asked)
    tokens = encode_prepared(engine.model, [prepared])
    return [prepared.refine(part) for part in attend(engine, tokens, asked, way.layer)]


def attend(
    engine: ChatEngine, tokens: Sequence[ImageTokens], asked: Sequence[Question], layer: int | None
) -> list[Tensor]:
    """Computes how much each question attends to every token of one image, float32 (M,); see `attention_on_images`."""
    prompts = [prompt_ids(engine, question.text) for question in asked]
    weights = attention_on_images(engine.model, prompts, [0] * len(asked), [tokens] * len(asked), layer)
    return [part for (part,) in weights]


@torch.inference_mode()
def measure(
    engine: ChatEngine, ways: Sequence[BudgetVariant], scenes: Iterable[tuple[Scene, list[Question]]]
) -> dict[str, Tally]:
    """Asks every question in every way; the ways of a scene are answered together."""
    answerer, tallies = Answerer(engine, max_new_tokens=40), {way.name: Tally() for way in ways}
    for made, asked in scenes:
        image = Image.fromarray(made.image)
        views = [prepare_for_questions(engine, way, image, asked) for way in ways]
        shown: list[ImageTokens] = encode_prepared(engine.model, [view for row in views for view in row])
        texts = [(i, asked[i % len(asked)].text) for i in range(len(shown))]
        said = iter(answerer.answer(shown, texts))
        for way, row in zip(ways, views, strict=True):
            tally, asks = tallies[way.name], way.settings.budget == "question"
            for question, view in zip(asked, row, strict=True):
                tally.right[question.kind].append(same_answer(next(said), question.answer))
                tally.second.append(view.tokens)
                tally.first.append(engine.model.get_vision_tower().num_patches if asks else 0)
    return tallies


def table(checkpoints: Sequence[Mapping[str, Tally]], native: int) -> str:
    """Formats the accuracies in percent, the tokens, and the computation before the answer as LLaVA-1.5-7B has it.

    Args:
        checkpoints: what each checkpoint answered to the same questions, by way; V* by checkpoint has its own column if
            there are several.
        native: tokens of an unsplit square image.
    """
    several = ["V* by checkpoint"] if len(checkpoints) > 1 else []
    rows = [table_head(["way", "tokens", "x CLIP's", "7B prefill, x CLIP's", "V*", *several, *COLUMNS])]
    for name in checkpoints[0]:
        tallies = [checkpoint[name] for checkpoint in checkpoints]
        tokens = np.mean([tally.second for tally in tallies])
        first, second = np.mean([tally.first for tally in tallies]) / native, tokens / native
        cost = prefill_flops(float(second), float(first)) / prefill_flops(1.0)
        shares = [interval(accuracy(tallies, kinds)) for kinds in (V_STAR, *((kind,) for kind in COLUMNS))]
        if several:
            shares.insert(1, join_values(tally.percent(V_STAR) for tally in tallies))
        rows.append(table_row([name, f"{tokens:.1f}", f"{second:.2f}", f"{cost:.2f}", *shares]))
    return "\n".join(rows)
