"""The question-aware budget for an attached model of transformers, whose processor has no model to ask.

`model.generate(**qlip.process_for_question(model, processor, image, prompt))`: the first pass runs in between.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import BatchFeature, ProcessorMixin

from qlip.attention import attention_on_keys, check_followed, middle_layer
from qlip.config import QLIPConfig
from qlip.decoder_masks import window_of
from qlip.image_processing import QLIPImageProcessor
from qlip.images.arrays import flatten_images, to_pillow
from qlip.integrations.llava import LlavaMixin
from qlip.language_positions import key_bias
from qlip.patches import CutImage
from qlip.question import cut_for_question


@torch.no_grad()
def process_for_question(
    model: Any,
    processor: Any,
    images: Any,
    text: str | Sequence[str],
    questions: str | Sequence[str] | None = None,
    **options: Any,
) -> BatchFeature:
    """Asks about the unsplit images first, and prepares the prompt with what the question attends to split.

    Args:
        model: LlavaForConditionalGeneration, LLaVA-NeXT or VipLlava that QLIP is attached to.
        processor: the attached processor.
        images: one or more, as the processor takes them.
        text: prompts with <image>, as the processor takes them.
        questions: the newest question of each prompt, as its text has it; it and all after it attend. None: all
            text does.
        **options: of the processor, such as `padding`; tensors are PyTorch's.

    Returns:
        What the processor returns, on the model's device, for `generate` or `forward`.

    Raises:
        TypeError: the model is not an attached one with a language model, or the processor not its own.
        ValueError: the processor has other settings, the model's budget is not "question", there is no image or one
            that no question follows, questions and prompts do not match, or what the processor and the model raise.
    """
    if not isinstance(model, LlavaMixin):
        raise TypeError(f"{type(model).__name__} is not an attached model with a language model; see qlip.attach")
    own = getattr(processor, "image_processor", None)
    if not isinstance(own, QLIPImageProcessor):
        raise TypeError(f"the processor is a {type(processor).__name__}; give the one that qlip.attach returned")
    check_settings(own, model.attachment.image_processor)
    options["return_tensors"] = "pt"
    settings, cutter = model.attachment.vision.qlip, own.cutter
    check_budget(settings)
    check_questions(text, questions)
    pictures = [to_pillow(picture) for picture in flatten_images(own.fetch_images(images))]
    if not pictures:
        raise ValueError("there is no image to ask about; call the processor itself")
    waiting = [cut_for_question(cutter.make_preparer(each), cutter.native_grid, settings) for each in pictures]
    device = model.get_input_embeddings().weight.device  # type: ignore[attr-defined]
    first = with_cuts(processor, [each.first for each in waiting])(images=pictures, text=text, **options).to(device)
    asks = mark_questions(processor, first, text, questions, model.config.image_token_id)
    check_order(asks, first["input_ids"] == model.config.image_token_id)
    if any(each.splits for each in waiting):
        weights = attention_on_images(model, first, asks)
        cuts = [each.refine(own_weights) for each, own_weights in zip(waiting, weights, strict=True)]
    else:  # no question could change them
        cuts = [each.unasked for each in waiting]
    return with_cuts(processor, cuts)(images=pictures, text=text, **options).to(device)


def check_settings(given: QLIPImageProcessor, own: QLIPImageProcessor) -> None:
    """Raises ValueError unless a processor prepares images as the model's own does."""
    theirs, ours = (
        {**image.qlip.to_dict(), "patch_size": image.patch_size, "native grid": image.native_grid}
        for image in (given, own)
    )
    if other := [name for name, value in ours.items() if theirs[name] != value]:
        raise ValueError(
            f"the processor has {other[0]}={theirs[other[0]]!r}, the model {other[0]}={ours[other[0]]!r}; give the"
            " processor that the last qlip.attach returned for this model"
        )


def check_budget(settings: QLIPConfig) -> None:
    """Raises ValueError unless a question decides what is split."""
    if settings.budget != "question":
        change = " and tiling='image'" if settings.tiling == "tiles" else ""
        raise ValueError(
            f"the model's budget is {settings.budget!r}, by which no question is asked; attach it with"
            f" budget='question'{change}, or call the processor itself"
        )


def check_questions(text: str | Sequence[str], questions: str | Sequence[str] | None) -> None:
    """Raises ValueError unless each prompt has its question."""
    if questions is None:
        return
    prompts, asked = as_list(text), as_list(questions)
    if len(prompts) != len(asked):
        raise ValueError(f"{len(asked)} questions are given for {len(prompts)} prompts; give one for each")
    for prompt, question in zip(prompts, asked, strict=True):
        if question not in prompt:
            raise ValueError(f"the question {question!r} is not in its prompt {prompt!r}")


def check_order(asks: Tensor, is_image: Tensor) -> None:
    """Raises ValueError if no marked token, bool (B, T), follows the images of a prompt."""
    for row, (own, images) in enumerate(zip(asks, is_image, strict=True)):
        if bool(images.any()):
            check_followed(own, int(images.nonzero()[-1]) + 1, row)


def as_list(text: str | Sequence[str]) -> list[str]:
    """Lists prompts or questions; a single one may be a plain string."""
    return [text] if isinstance(text, str) else list(text)


def with_cuts(processor: ProcessorMixin, cuts: Sequence[CutImage]) -> Any:
    """Copies a processor so that it uses `cuts`, made before, instead of cutting images."""
    given = copy.copy(processor)
    given.image_processor = copy.copy(processor.image_processor)
    given.image_processor.cut_originals = lambda images: list(cuts)
    return given


def mark_questions(
    processor: Any, inputs: BatchFeature, text: str | Sequence[str], questions: str | Sequence[str] | None, image: int
) -> Tensor:
    """Marks the tokens whose attention counts: bool (B, T).

    Args:
        processor: has the tokenizer.
        inputs: of the first pass.
        text: the prompts.
        questions: see `process_for_question`; checked by `check_questions`.
        image: the id of an image's tokens.
    """
    asks = inputs["attention_mask"].bool() & (inputs["input_ids"] != image)
    if questions is None:
        return asks
    for row, (prompt, question) in enumerate(zip(as_list(text), as_list(questions), strict=True)):
        # Without images: each is one token there, and as many as it has leaves in the inputs.
        after = processor.tokenizer(prompt[prompt.rfind(question) :], add_special_tokens=False).input_ids
        count, own = sum(token != image for token in after), asks[row].nonzero()[:, 0]
        asks[row, own[: max(0, len(own) - count)]] = False
    return asks


def attention_on_images(model: Any, inputs: BatchFeature, asks: Tensor) -> list[Tensor]:
    """Computes how much the marked tokens attend to every token of each image, float32 (M,), in the tower's order.

    Args:
        model: an attached model.
        inputs: of its processor.
        asks: bool (B, T).
    """
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    images = inputs["leaf_boxes"], inputs["leaf_grids"], inputs.get("image_sizes")
    placed = model.place_images(ids, mask, *images)
    text, trunk = model.config.get_text_config(), model.model.language_model
    weights = attention_on_keys(
        trunk,
        middle_layer(trunk),
        lambda: model(**inputs, use_cache=False, logits_to_keep=1),
        asks,
        mask.bool(),
        key_bias(placed.sizes, text._attn_implementation),
        window_of(text, middle_layer(trunk)),
    )
    spans, orders = model.span_images(*images)
    joined = weights[ids == model.config.image_token_id].split([span.count for span in spans])
    if orders is None:
        return list(joined)
    return [order.restore(part) for order, part in zip(orders, joined, strict=True)]
