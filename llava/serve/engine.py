"""One generation engine for every front end: prompt and pictures in, pieces of text out.

It owns a loaded model with its tokenizer, image processor and prompt format, and answers one request at a time. It
knows no files, sockets or terminals.
"""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import StoppingCriteria, TextIteratorStreamer

from llava.constants import (
    DEFAULT_IM_END_TOKEN,
    DEFAULT_IM_START_TOKEN,
    DEFAULT_IMAGE_TOKEN,
    IMAGE_PLACEHOLDER,
    IMAGE_TOKEN_INDEX,
)
from llava.conversation import Conversation, SeparatorStyle, conv_templates
from llava.mm_utils import process_images, tokenizer_image_token

TextStream = Generator[str, None, None]


@dataclass(frozen=True)
class Sampling:
    """How the answer's tokens are chosen, and when it ends."""

    temperature: float = 0.2
    """0 takes the likeliest token each time; higher is freer."""
    top_p: float | None = None
    """Share of the probability that is sampled from, in (0, 1]; None for all."""
    num_beams: int = 1
    """Width of the beam search; above 1 the answer comes in one piece."""
    max_new_tokens: int = 512
    """Longest answer, in tokens."""
    stop: tuple[str, ...] = ()
    """Texts that end the answer; they are not part of it."""

    def __post_init__(self) -> None:
        if not self.temperature >= 0:
            raise ValueError(f"temperature must be at least 0, got {self.temperature}")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be in (0, 1], got {self.top_p}")
        for name in ("num_beams", "max_new_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")


class PromptTooLong(ValueError):
    """A prompt, its pictures and the longest answer exceed the model's context."""


class ChatEngine:
    """Answers prompts about pictures with one loaded model."""

    def __init__(
        self, tokenizer: Any, model: Any, image_processor: Any, context_len: int, conv_mode: str | None = None
    ) -> None:
        """
        Args:
            tokenizer: As `load_pretrained_model` returns it, like the next three.
            model: The model; its config may name the prompt format (`conv_mode`).
            image_processor: Prepares pictures for the model's vision tower.
            context_len: Most tokens a prompt and its answer may have together.
            conv_mode: Key of `conv_templates`; None takes the config's, or else "vicuna_v1".

        Raises:
            ValueError: for an unknown `conv_mode`.
        """
        self.tokenizer = tokenizer
        self.model = model
        self.image_processor = image_processor
        self.context_len = context_len
        self.conv_mode = conv_mode or model.config.conv_mode or "vicuna_v1"
        if self.conv_mode not in conv_templates:
            raise ValueError(f"unknown conv_mode {self.conv_mode!r}; known: {', '.join(conv_templates)}")

    @property
    def padding_id(self) -> int:
        """The token that fills up a batch: the tokenizer's own, or its end token."""
        end, padding = self.tokenizer.eos_token_id, self.tokenizer.pad_token_id
        return end if padding is None else padding

    def new_conversation(self) -> Conversation:
        """Returns an empty conversation in the model's prompt format."""
        return conv_templates[self.conv_mode].copy()

    def first_question(self, text: str, num_images: int) -> str:
        """Puts one image token per picture before a question, or where its placeholders say."""
        token = DEFAULT_IMAGE_TOKEN
        if self.model.config.mm_use_im_start_end:
            token = DEFAULT_IM_START_TOKEN + DEFAULT_IMAGE_TOKEN + DEFAULT_IM_END_TOKEN
        if IMAGE_PLACEHOLDER in text:
            return text.replace(IMAGE_PLACEHOLDER, token)
        return f"{token}\n" * num_images + text

    def question(self, text: str, num_images: int) -> Conversation:
        """Returns a fresh conversation in which a question about pictures waits for its answer."""
        conversation = self.new_conversation()
        user, assistant = conversation.roles
        conversation.append_message(user, self.first_question(text, num_images))
        conversation.append_message(assistant, None)
        return conversation

    def ask(self, text: str, images: Sequence[Image.Image], sampling: Sampling | None = None) -> str:
        """Returns the whole answer to one question about pictures; greedy by default."""
        sampling = sampling or Sampling(temperature=0.0)
        return "".join(self.reply(self.question(text, len(images)), images, sampling)).strip()

    def prepare_images(self, images: Sequence[Image.Image]) -> Tensor | list[Tensor]:
        """Returns what the vision tower takes: float32 (images, C, H, W) or a list, on its device."""
        tower = self.model.get_vision_tower()
        tensors = process_images(images, self.image_processor, self.model.config)
        if isinstance(tensors, list):
            return [tensor.to(tower.device) for tensor in tensors]
        return tensors.to(tower.device)

    def reply(self, conversation: Conversation, images: Sequence[Image.Image], sampling: Sampling) -> TextStream:
        """Yields the answer that a conversation waits for; its format's separator ends the answer too."""
        stop = (*sampling.stop, *separators(conversation))
        return self.generate(conversation.get_prompt(), images, replace(sampling, stop=stop))

    def generate(self, prompt: str, images: Sequence[Image.Image], sampling: Sampling) -> TextStream:
        """Yields the answer to a prompt piece by piece. Closing the iterator stops the model.

        Args:
            prompt: Finished prompt text with one `<image>` per picture.
            images: The pictures, RGB.
            sampling: How to choose tokens.

        Raises:
            PromptTooLong: if prompt, pictures and the longest answer exceed the context, before anything is computed.
        """
        input_ids = torch.tensor([tokenizer_image_token(prompt, self.tokenizer)])
        pixels = self.prepare_images(images) if images else None
        self._check_context(input_ids, pixels, sampling)
        inputs = {
            "input_ids": input_ids.to(self.model.device),
            "attention_mask": torch.ones_like(input_ids, device=self.model.device),
            "images": pixels,
            "image_sizes": [image.size for image in images] or None,
        }
        return self._stream(inputs, sampling)

    def _stream(self, inputs: dict[str, Any], sampling: Sampling) -> TextStream:
        if sampling.num_beams > 1:
            ids = self._run(inputs, sampling)
            yield from until_stop(self.tokenizer.batch_decode(ids, skip_special_tokens=True), sampling.stop)
            return
        cancelled = threading.Event()
        streamer = TextIteratorStreamer(self.tokenizer, skip_prompt=True, skip_special_tokens=True)
        with ThreadPoolExecutor(max_workers=1) as pool:
            future = pool.submit(
                self._run, inputs, sampling, streamer=streamer, stopping_criteria=[_StopWhenSet(cancelled)]
            )
            # A failed run leaves the streamer open, and its reader waiting.
            future.add_done_callback(lambda _: streamer.text_queue.put(streamer.stop_signal))
            try:
                yield from until_stop(streamer, sampling.stop)
            finally:
                cancelled.set()
            future.result()

    def _run(self, inputs: dict[str, Any], sampling: Sampling, **hooks: Any) -> Tensor:
        sample = sampling.temperature > 0
        with torch.inference_mode():
            return self.model.generate(
                **inputs,
                **hooks,
                do_sample=sample,
                temperature=sampling.temperature if sample else None,
                top_p=sampling.top_p if sample else None,
                num_beams=sampling.num_beams,
                max_new_tokens=sampling.max_new_tokens,
                pad_token_id=self.padding_id,
                use_cache=True,
            )

    def _check_context(self, input_ids: Tensor, pixels: Tensor | list[Tensor] | None, sampling: Sampling) -> None:
        text = int((input_ids != IMAGE_TOKEN_INDEX).sum())
        visual = 0 if pixels is None else sum(self._visual_tokens(image) for image in pixels)
        self.check_length(text, visual, sampling.max_new_tokens)

    def check_length(self, text: int, visual: int, answer: int) -> None:
        """Raises PromptTooLong unless so many text and visual tokens and the longest answer fit the context."""
        if text + visual + answer > self.context_len:
            raise PromptTooLong(
                f"{text} text tokens, {visual} visual tokens and an answer of up to {answer} "
                f"tokens exceed the model's context of {self.context_len}"
            )

    def _visual_tokens(self, pixels: Tensor) -> int:
        """How much of the context one prepared picture takes, in tokens or in positions: (C, H, W), or (tiles, ...)."""
        tower = self.model.get_vision_tower()
        tiles = pixels if pixels.ndim == 4 else [pixels]
        return sum(max(tower.count_tokens(tile), tower.count_positions(tile)) for tile in tiles)


def separators(conversation: Conversation) -> tuple[str, ...]:
    """The text that ends an answer in a conversation's format; none, for some formats."""
    two = conversation.sep_style in (SeparatorStyle.TWO, SeparatorStyle.LLAMA_2)
    separator = conversation.sep2 if two else conversation.sep
    return (separator,) if separator else ()


class _StopWhenSet(StoppingCriteria):
    """Ends every row's generation once the event is set."""

    def __init__(self, event: threading.Event) -> None:
        self.event = event

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        return torch.full((len(input_ids),), self.event.is_set(), dtype=torch.bool, device=input_ids.device)


def until_stop(pieces: Iterable[str], stops: Sequence[str]) -> Iterator[str]:
    """Passes text on up to the first stop string.

    Text that may turn out to be the beginning of a stop string is held back, so that no part of one is passed on.

    Args:
        pieces: Text in any cuts.
        stops: The stop strings.
    """
    held = ""
    for piece in pieces:
        held += piece
        cut = min((held.find(stop) for stop in stops if stop in held), default=None)
        if cut is not None:
            if cut > 0:
                yield held[:cut]
            return
        longest = min(max((len(stop) for stop in stops), default=1) - 1, len(held))
        keep = next((n for n in range(longest, 0, -1) if any(stop.startswith(held[-n:]) for stop in stops)), 0)
        if len(held) > keep:
            yield held[: len(held) - keep]
            held = held[len(held) - keep :]
    if held:
        yield held
