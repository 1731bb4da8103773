"""The generation engine of all front ends: a prompt and images in, a stream of text out.

It owns a loaded model with its tokenizer, image processor and prompt format. Waiting requests are generated together
in one model thread; each gets the answer that it would get alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from llava.constants import DEFAULT_IM_END_TOKEN, DEFAULT_IM_START_TOKEN, DEFAULT_IMAGE_TOKEN, IMAGE_TOKEN_INDEX
from llava.conversation import Conversation, conv_templates
from llava.images import Fit, ImageOpener
from llava.mm_utils import ImageList, process_images, tokenizer_image_token
from llava.model.loading.chat_template import default_template
from llava.model.vision.prepared_image import PreparedImage
from llava.model.vision.question_budget import awaits_question
from llava.serve.engine.answer_stream import AnswerStream, Usage, stream_text
from llava.serve.engine.continuous import ContinuousBatch
from llava.serve.engine.encoding import encode_answers
from llava.serve.engine.errors import PromptTooLongError
from llava.serve.engine.explain import Explanation, explain_answer
from llava.serve.engine.generate import Row, generate_rows
from llava.serve.engine.params import SERVER_DEFAULTS, EngineLimits, Sampling
from llava.serve.engine.prefill import can_continue
from llava.serve.engine.prefix_memory import choose_prefix_bytes
from llava.serve.engine.prefixes import PrefixCache, prompt_key
from llava.serve.engine.prompting import find_end_tokens, find_question_token, separators
from llava.serve.engine.request import Request, cancel_prepared
from llava.serve.engine.scheduler import Scheduler
from llava.serve.engine.vision import Picture, RequestSettings, VisionFrontend, check_pictures
from llava.text import check_question, place_images
from qlip import QLIPConfig
from qlip.images.rgb import to_rgb

TextStream = Generator[str, None, None]


class ChatEngine:
    """Answers prompts about images with one loaded model."""

    def __init__(
        self,
        tokenizer: Any,
        model: Any,
        image_processor: Any,
        context_len: int,
        conv_mode: str | None = None,
        limits: EngineLimits | None = None,
        quadtree: bool = True,
        joins: bool = True,
    ) -> None:
        """
        Args:
            tokenizer: From `load_pretrained_model`, like the next three.
            model: The model; its config may name the prompt format (`conv_mode`).
            image_processor: Prepares images for the model's vision tower.
            context_len: Largest number of tokens of a prompt and its answer together.
            conv_mode: Key of `conv_templates`; None takes the config's, or else its language model's own.
            limits: Bounds on batches, the queue and requests.
            quadtree: Whether a quadtree tower uses its quadtree by default.
            joins: Whether requests join those that are being answered; otherwise, and where the model's attention or a
                beam search does not allow it, batches run to their end.

        Raises:
            ValueError: unknown `conv_mode`.
        """
        self.tokenizer = tokenizer
        self.model = model
        self.image_processor = image_processor
        self.context_len = context_len
        self.limits = limits or EngineLimits()
        self.vision = VisionFrontend(
            model, image_processor, quadtree, self.limits.max_image_tokens, self.limits.max_image_size
        )
        self.conv_mode = conv_mode or model.config.conv_mode or default_template(model.config)
        if self.conv_mode not in conv_templates:
            raise ValueError(f"unknown conv_mode {self.conv_mode!r}; known: {', '.join(conv_templates)}")
        self.prefixes, self._batch = PrefixCache(0), None
        if joins and can_continue(model):
            self.prefixes = PrefixCache(choose_prefix_bytes(model, context_len, self.limits))
            self._batch = ContinuousBatch(model, self.vision, self.limits, self.prefixes)
        joins, free = self._batch is not None, self.prefixes.make_room
        self.scheduler = Scheduler(lambda batch: self._generate(batch), self.limits, joins, free)
        self._preparers = ThreadPoolExecutor(self.limits.max_preparing, thread_name_prefix="prepare")
        # Separate threads for text, so that it never waits for images.
        self._text_preparers = ThreadPoolExecutor(self.limits.max_preparing, thread_name_prefix="prepare-text")

    @property
    def padding_id(self) -> int:
        """The token that pads a batch: the tokenizer's padding token, or its end token."""
        end, padding = self.tokenizer.eos_token_id, self.tokenizer.pad_token_id
        return end if padding is None else padding

    @property
    def end_tokens(self) -> frozenset[int]:
        """The tokens that end an answer."""
        config = getattr(self.model, "generation_config", None)
        return find_end_tokens(self.tokenizer, config, self.new_conversation())

    @property
    def waiting(self) -> int:
        """Number of requests that wait for the model."""
        return self.scheduler.admitted

    @property
    def running(self) -> int:
        """Number of requests that are being answered."""
        return self.scheduler.running

    @property
    def closed(self) -> bool:
        """Whether new requests are refused."""
        return self.scheduler.closed

    def new_conversation(self) -> Conversation:
        """Creates an empty conversation in the model's prompt format."""
        return conv_templates[self.conv_mode].copy()

    @property
    def image_token(self) -> str:
        """The text in place of an image in a prompt."""
        if self.model.config.mm_use_im_start_end:
            return DEFAULT_IM_START_TOKEN + DEFAULT_IMAGE_TOKEN + DEFAULT_IM_END_TOKEN
        return DEFAULT_IMAGE_TOKEN

    def first_question(self, text: str, num_images: int) -> str:
        """Puts one image token per image before a question, or where it says; see `place_images`."""
        return place_images(text, num_images, self.image_token)

    def question(self, text: str, num_images: int) -> Conversation:
        """Creates a conversation with one question about images, waiting for its answer."""
        conversation = self.new_conversation()
        user, assistant = conversation.roles
        conversation.append_message(user, self.first_question(text, num_images))
        conversation.append_message(assistant, None)
        return conversation

    def ask(self, text: str, images: Sequence[Image.Image], sampling: Sampling | None = None) -> str:
        """Answers one question about images; by default greedily, and as long as the context allows."""
        check_question(text)
        check_pictures(images)
        settings = sampling or Sampling(temperature=0.0)
        return "".join(self.reply(self.question(text, len(images)), images, settings, sampling is None)).strip()

    def prepare_images(self, images: Sequence[Image.Image]) -> Tensor | ImageList:
        """Prepares images for the vision tower: float32 (images, C, H, W) or a list, on its device."""
        device = self.model.get_vision_tower().device
        images = [to_rgb(image) for image in images]  # upright, as in a chat
        return process_images(images, self.image_processor, self.model.config).to(device)

    def reply(
        self, prompt: str | Conversation, images: Sequence[Image.Image], sampling: Sampling, shorten: bool = False
    ) -> TextStream:
        """Yields the answer to a prompt text or a conversation, see `submit`. Closing the iterator stops the model."""
        return stream_text(self.submit(prompt, images, sampling, shorten=shorten))

    generate = reply
    """The former name for prompt texts."""

    def submit(
        self,
        prompt: str | Conversation,
        images: Sequence[Picture],
        sampling: Sampling,
        qlip: RequestSettings = SERVER_DEFAULTS,
        shorten: bool = False,
    ) -> AnswerStream:
        """Queues a request and returns its answer, a stream for `for` or `async for`.

        Opens and prepares the images in the calling thread; from an event loop, use `asubmit`.

        Args:
            prompt: Complete prompt text with one `<image>` per image, or a conversation that waits for its answer; the
                separator of its format then ends the answer too.
            images: RGB images, or functions that open them, called once the request has a place in the queue.
            sampling: How to choose tokens.
            qlip: QLIP options for the images, or what `VisionFrontend.settings` made of them; checked before the rest.
            shorten: Whether to reduce `max_new_tokens` to what fits the context.

        Raises:
            PromptTooLongError: prompt, images and the longest answer exceed the context; checked before the model runs.
            OverloadedError: the queue is full.
            EngineClosedError: the engine is shutting down.
            ValueError: the number of `<image>` in the prompt differs from that of images, or options are out of range.
            Others: what opening an image raises.
        """
        request = Request(prompt, images, sampling, self.vision.settings(qlip), shorten)
        self.scheduler.reserve()
        return self._enqueue(request)

    async def asubmit(
        self,
        prompt: str | Conversation,
        images: Sequence[Picture],
        sampling: Sampling,
        qlip: RequestSettings = SERVER_DEFAULTS,
        shorten: bool = False,
    ) -> AnswerStream:
        """Queues a request like `submit`, but opens and prepares its images in other threads, a few requests at a time.

        If it is cancelled meanwhile, the request is dropped and the opening of its images is stopped.
        """
        request = Request(prompt, images, sampling, self.vision.settings(qlip), shorten)
        self.scheduler.reserve()
        preparers = self._preparers if images else self._text_preparers
        try:
            preparing = preparers.submit(self._enqueue, request)
        except BaseException:  # the system starts no more threads
            self.scheduler.release()
            raise
        try:
            return await asyncio.wrap_future(preparing)
        except asyncio.CancelledError:
            if preparing.cancel():  # not started yet
                self.scheduler.release()
            else:
                preparing.add_done_callback(cancel_prepared)
                for image in images:
                    if isinstance(image, ImageOpener):
                        image.cancel()
            raise

    def explain(
        self, question: str | Conversation, images: Sequence[Image.Image], answer: str | None = None, **options: Any
    ) -> Explanation:
        """Computes what an answer depended on, by leaf of each image; see `explain_answer`, which lists the options."""
        return explain_answer(self, question, images, answer, **options)

    def close(self) -> None:
        """Refuses new requests and waits until the others are answered."""
        self.scheduler.close()
        self._preparers.shutdown(wait=True)
        self._text_preparers.shutdown(wait=True)

    def check_length(self, text: int, visual: int, answer: int) -> None:
        """Raises PromptTooLongError unless text, images (`PreparedImage.context`) and answer fit the context."""
        if text + visual + answer > self.context_len:
            raise PromptTooLongError(
                f"{text} text tokens, {visual} positions of images and an answer of up to {answer} "
                f"exceed the model's context of {self.context_len} tokens"
            )

    def _enqueue(self, request: Request) -> AnswerStream:
        """Prepares a request that has a place in the queue and enqueues it; on an error, gives the place back."""
        try:
            answer = self._prepare(request)
        except BaseException:
            self.scheduler.release()
            raise
        self.scheduler.enqueue(answer)
        return answer

    def _prepare(self, request: Request) -> AnswerStream:
        prompt, images, sampling, form = request.prompt, request.images, request.sampling, self.new_conversation()
        if isinstance(prompt, Conversation):
            form = prompt
            sampling = replace(sampling, stop=(*sampling.stop, *separators(prompt)))
            prompt = prompt.get_prompt()
        ids = torch.tensor(tokenizer_image_token(prompt, self.tokenizer))
        wanted = int((ids == IMAGE_TOKEN_INDEX).sum())
        if wanted != len(images):
            raise ValueError(f"the prompt holds {wanted} <image>, but {len(images)} images were given")
        # One after the other, so that only one image at a time is in memory at its full size.
        fit = self.vision.make_fit(request.settings) if images else None
        views = [self._prepare_image(image, request.settings, fit) for image in images]
        text, context = len(ids) - wanted, sum(view.context for view in views)
        if request.shorten:
            sampling = sampling.shorten(self.context_len - text - context)
        self.check_length(text, context, sampling.max_new_tokens)
        usage = Usage(text, sum(view.tokens for view in views), sum(view.uniform_tokens for view in views))
        question = find_question_token(prompt, form, self.tokenizer, len(ids)) if awaits_question(views) else 0
        key = prompt_key(ids.tolist(), views) if self.prefixes.most_bytes else ()
        row = Row(ids, sampling, self.tokenizer, self.end_tokens, question=question, key=key)
        return AnswerStream(row, views, usage, self.scheduler.remove)

    def _prepare_image(self, image: Picture, settings: QLIPConfig | None, fit: Fit | None) -> PreparedImage:
        if isinstance(image, ImageOpener):
            image.fit = fit
        return self.vision.prepare(image() if callable(image) else image, settings)

    def _generate(self, batch: Sequence[AnswerStream]) -> None:
        """Answers a batch; runs in the model thread."""
        if self._batch is not None and batch[0].row.sampling.num_beams == 1:
            self._batch.run(batch, self.scheduler.take)
            return
        images = encode_answers(self.vision, batch, self.limits.max_join_tokens)
        if images is not None:
            generate_rows(self.model, [answer.row for answer in batch], images, self.padding_id)
