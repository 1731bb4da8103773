"""Exact match on a question file, measured on the model that is being trained: `--eval_questions`."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import extract_model_from_parallel
from transformers.integrations import is_deepspeed_zero3_enabled, is_fsdp_enabled

from llava.conversation import Conversation, conv_templates
from llava.eval.run.answerer import is_right
from llava.eval.run.batching import BatchLimits
from llava.eval.run.inputs.checks import check_answered, check_images
from llava.eval.run.inputs.preparation import prepare_ahead
from llava.eval.run.inputs.questions import Question, read_lines
from llava.eval.run.runner import Runner
from llava.eval.run.windows import list_sources
from llava.model.vision.preparer import Preparer
from llava.serve.engine import ChatEngine
from llava.serve.engine.params import EngineLimits, Sampling
from llava.train.throughput import Gather, gather_objects

logger = logging.getLogger(__name__)

EXACT_MATCH = "exact_match"
"""The measure's name in the logs, after the evaluation's prefix."""
MAX_NEW_TOKENS = 64
"""Longest answer, as in `qlip sweep`."""


class QuestionEvaluation:
    """Asks a model in training the questions of a file, greedily; the processes share them."""

    def __init__(
        self,
        questions: Sequence[Question],
        tokenizer: Any,
        preparer: Preparer,
        template: Conversation,
        *,
        dtype: torch.dtype = torch.float32,
        workers: int = 0,
        rank: int = 0,
        world_size: int = 1,
        gather: Gather = gather_objects,
    ) -> None:
        """
        Args:
            questions: each with its right answer.
            tokenizer: the model's.
            preparer: of the model's tower.
            template: the prompt format that the model is trained in.
            dtype: bfloat16 or float16 computes the answers in mixed precision, as training does.
            workers: processes that prepare images.
            rank: this process's number.
            world_size: number of processes; each answers every `world_size`-th question.
            gather: collects one object per process.
        """
        self.total = len(questions)
        self.questions = questions[rank::world_size]
        self.tokenizer = tokenizer
        self.preparer = preparer
        self.conv_mode = find_name(template)
        self.dtype = dtype
        self.workers = workers
        self.gather = gather
        self.limits = BatchLimits()

    @classmethod
    def of(cls, data_args: Any, training_args: Any, tokenizer: Any) -> QuestionEvaluation | None:
        """Builds the evaluation that the arguments of training ask for; None where they do not ask for any.

        Args:
            data_args: with `preparer` and `template`.
            training_args: `TrainingArguments`.
            tokenizer: the model's.

        Raises:
            ValueError: the question file or its images cannot be used, the model has no vision tower, or no process
                has the whole of its weights.
        """
        if data_args.eval_questions is None:
            return None
        if data_args.preparer is None:
            raise ValueError("--eval_questions asks about images, but the model has no tower; give --vision_tower")
        refuse_sharded_weights(training_args)
        flag = "image_folder" if data_args.eval_image_folder is None else "eval_image_folder"
        folder = Path(getattr(data_args, flag) or ".")
        return cls(
            read_questions(Path(data_args.eval_questions), folder, f"--{flag}"),
            tokenizer,
            data_args.preparer,
            data_args.template,
            dtype=training_args.compute_dtype,
            workers=training_args.dataloader_num_workers,
            rank=training_args.process_index,
            world_size=training_args.world_size,
        )

    def __call__(self, model: Any, prefix: str = "eval") -> dict[str, float]:
        """Measures exact match; every process must call it at the same step.

        A question that gets no answer, because its image cannot be decoded or its prompt is too long, counts as wrong
        and is logged. The model is left as it was: training mode, and the state of random numbers.

        Args:
            model: the model, as the trainer wraps it or not.
            prefix: of the measure's name.

        Returns:
            `{prefix}_exact_match` in %, over the questions of all processes.
        """
        with evaluation_mode(model):
            right = self._count_right(unwrap_model(model))
        return {f"{prefix}_{EXACT_MATCH}": 100 * sum(self.gather(right)) / self.total}

    def _count_right(self, model: Any) -> int:
        """Asks this process's questions and counts the right answers."""
        processor, config = model.get_vision_tower().image_processor, model.config
        limits = EngineLimits(max_prefix_mib=0)  # no question is asked twice, and training needs the memory
        with warnings_only("llava.serve"):  # it would name flags of servers, at each evaluation
            engine = ChatEngine(self.tokenizer, model, processor, config.context_length, self.conv_mode, limits)
        runner = Runner(
            engine, Sampling(temperature=0.0, max_new_tokens=MAX_NEW_TOKENS), limits=self.limits, shorten=True
        )
        images = list_sources(self.questions, self.limits)
        ready = prepare_ahead(self.preparer, images, self.workers, self.limits.rows)
        mixed, right = self.dtype != torch.float32, 0
        with torch.autocast(model.device.type, dtype=self.dtype if mixed else None, enabled=mixed):
            for answer in chain.from_iterable(runner.run(self.questions, ready)):
                if answer.text is None:
                    logger.warning("question %r has no answer: %s", answer.question.question_id, answer.error)
                else:
                    right += is_right(answer.question.text, answer.text, str(answer.question.answer))
        engine.close()
        return right


@contextmanager
def warnings_only(name: str) -> Iterator[None]:
    """Mutes what a package logs below warnings."""
    package = logging.getLogger(name)
    before = package.level
    package.setLevel(max(logging.WARNING, package.getEffectiveLevel()))
    try:
        yield
    finally:
        package.setLevel(before)


def read_questions(file: Path, folder: Path, flag: str = "--eval_image_folder") -> list[Question]:
    """Reads the questions of `--eval_questions` and checks that each has an answer and a readable image.

    Args:
        file: JSON lines of `question_id`, `image`, `text` and `answer` (or `label`).
        folder: the images.
        flag: what names it on the command line, for errors.

    Raises:
        ValueError: the file is missing or malformed, an answer is missing, or images are missing or unreadable.
    """
    if not file.is_file():
        raise ValueError(f"there is no file {file}; --eval_questions names a file of questions, as JSON lines")
    questions = read_lines(file, folder)
    check_answered(file, questions, "add it as the field 'answer'")
    check_images((question.image for question in questions), folder, flag=flag)
    return questions


def refuse_sharded_weights(training_args: Any) -> None:
    """Raises ValueError where weights are sharded: generating would gather each of them for every token."""
    kind = "FSDP" if training_args.fsdp or is_fsdp_enabled() else "ZeRO-3" if is_deepspeed_zero3_enabled() else None
    if kind is not None:
        raise ValueError(
            f"--eval_questions needs all weights in every process, and {kind} shards them; use scripts/zero2.json, or"
            " measure the loss alone by --eval_data_path"
        )


def find_name(template: Conversation) -> str:
    """Finds the key of a prompt template in `conv_templates`.

    Raises:
        ValueError: it is not there.
    """
    for name, known in conv_templates.items():
        if known == template:
            return name
    raise ValueError(f"the prompt template {template.version!r} is not in conv_templates: {', '.join(conv_templates)}")


def unwrap_model(model: Any) -> Any:
    """Finds the LLaVA model inside of what distributed training, compilation and LoRA wrap around it."""
    inner = extract_model_from_parallel(model, keep_torch_compile=False)
    return inner.get_base_model() if hasattr(inner, "get_base_model") else inner


@contextmanager
def evaluation_mode(model: Any) -> Iterator[None]:
    """Puts a model in evaluation mode; afterwards restores the mode of each module and the CPU's random numbers.

    Workers that prepare images are seeded from these. Greedy answers take none of an accelerator's.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        for module, mode in modes:
            module.training = mode
