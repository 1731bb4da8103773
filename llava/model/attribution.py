"""Attribution: how much each visual token counts for an answer that is known."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from llava.model.splice import bias_keys
from llava.model.vision.image_tokens import ImageTokens
from llava.model.vision.question_budget import attention_on_images

Method = Literal["gradient", "gradient-activation", "attention"]
"""What weighs a token: the norm of the gradient of the answer's log-likelihood at the token's projected features; the
absolute value of that gradient's product with the features; or the attention of the answer's tokens to it, the mean
over the heads of the middle layer."""

METHODS: tuple[Method, ...] = get_args(Method)
DEFAULT_METHOD: Method = "gradient"
"""The best of the deletion test (docs/results/attribution.md)."""


@torch.inference_mode(False)
def attribute_answer(
    model: Any, prompt: Tensor, answer: Tensor, images: Sequence[ImageTokens], method: Method = DEFAULT_METHOD
) -> list[Tensor]:
    """Computes how much each visual token of a prompt counts for its answer.

    One pass through the language model, and for the gradient one back. The model does not change, nor do gradients that
    it has. May be called in inference mode.

    Args:
        model: a LLaVA model.
        prompt: int64 (L,), IMAGE_TOKEN_INDEX where an image goes; at least one image.
        answer: int64 (A,), the answer's tokens, at least one.
        images: of the prompt, projected.
        method: see `Method`. Where gradients do not pass through the model, or overflow, the attention is taken.

    Returns:
        float32 (N,) for each image, on the CPU: not negative, and all together sum to 1.

    Raises:
        ValueError: the prompt has no image, the answer no token, or the method is unknown.
    """
    if method not in METHODS:
        raise ValueError(f"method is {method!r}; allowed are {', '.join(METHODS)}")
    if not len(images):
        raise ValueError("the prompt has no image that the answer could depend on; add one")
    if not len(answer):
        raise ValueError("the answer is empty; there is nothing to attribute")
    ids = torch.cat([prompt, answer])
    weights = None if method == "attention" else _weigh_by_gradient(model, ids, len(answer), images, method)
    if weights is None:
        # The last token of the prompt predicts the first one of the answer.
        weights = attention_on_images(model, [ids[:-1]], [len(prompt) - 1], [images])[0]
    return _normalise(weights)


def _weigh_by_gradient(
    model: Any, ids: Tensor, answered: int, images: Sequence[ImageTokens], method: Method
) -> list[Tensor] | None:
    """Weighs the tokens by the gradient of a prompt's last `answered` tokens; None if there is none or it overflows.

    Outside of inference mode; features from there are copied.
    """
    with torch.enable_grad():
        features = [image.features.detach().clone().requires_grad_() for image in images]
        tokens = [image.with_features(own) for image, own in zip(images, features, strict=True)]
        likelihood = answer_log_likelihood(model, ids, answered, tokens)
        if not likelihood.requires_grad:
            return None
        gradients = torch.autograd.grad(likelihood, features)
    if not all(bool(gradient.isfinite().all()) for gradient in gradients):
        return None
    if method == "gradient":
        return [gradient.float().norm(dim=-1) for gradient in gradients]
    pairs = zip(gradients, features, strict=True)
    return [(gradient.float() * own.detach().float()).sum(-1).abs() for gradient, own in pairs]


def answer_log_likelihood(model: Any, ids: Tensor, answered: int, images: Sequence[ImageTokens]) -> Tensor:
    """Computes the sum of the log-probabilities of a prompt's last tokens, given those before: float32 ().

    Args:
        model: a LLaVA model.
        ids: int64 (L,), IMAGE_TOKEN_INDEX where an image goes.
        answered: A, how many of the last tokens.
        images: of the prompt, projected.
    """
    ids = ids.to(model.device)
    batch = model.splice_images(ids[None], None, None, list(images), "left")
    logits = model(
        inputs_embeds=batch.inputs_embeds,
        attention_mask=batch.attention_mask,
        position_ids=batch.placed.positions,
        key_bias=bias_keys(batch, model.config),
        use_cache=False,
        logits_to_keep=answered + 1,
    ).logits[0, :-1]
    said = ids[-answered:].to(logits.device)
    return logits.float().log_softmax(-1).gather(1, said[:, None]).sum()


def _normalise(weights: Sequence[Tensor]) -> list[Tensor]:
    """Scales weights to the sum 1; where all are 0, they become equal."""
    joined = torch.cat([own.detach().float().cpu() for own in weights])
    total = joined.sum()
    shares = joined / total if total > 0 else torch.full_like(joined, 1 / len(joined))
    return list(shares.split([len(own) for own in weights]))
