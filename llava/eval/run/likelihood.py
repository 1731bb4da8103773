"""Chooses the likeliest option of a V* Bench question, as the benchmark's authors do.

The model gets the question without its options. An option's loss is the mean cross-entropy of its tokens, the end of
the answer included; the option with the lowest loss is chosen. Source: arXiv 2312.14135, `vstar_bench_eval.py`.
"""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from llava.eval.run.answers.answer import Answer, row_maker
from llava.eval.run.answers.metadata import checkpoint_hash, run_settings
from llava.eval.run.answers.recording import find_unanswered, open_answers, record, report
from llava.eval.run.generate import prompt_ids, refine_for_questions
from llava.eval.run.inputs.checks import read_inputs
from llava.eval.run.inputs.questions import Question, find_image, name_image
from llava.eval.score.choice import right_letter
from llava.eval.score.option_lists import split_options
from llava.eval.score.parse import letters
from llava.eval.score.rows import Row, read_json, read_labelled
from llava.mm_utils import tokenizer_image_token
from llava.model.vision.encoding import encode_prepared
from llava.model.vision.image_tokens import ImageTokens
from llava.model.vision.preparer import Preparer, Unreadable
from llava.serve.engine import ChatEngine
from llava.serve.engine.errors import PromptTooLongError
from llava.serve.engine.params import Sampling
from llava.serve.engine.prefill import rotates_by_length
from llava.serve.loading import check_model_flags, load_engine


@dataclass(frozen=True)
class Choice:
    """A multiple-choice question."""

    question: str
    """The question without its options."""
    options: dict[str, str]
    """Letter -> answer."""

    @property
    def text(self) -> str:
        """The question and what it can be answered with, a line each."""
        return "\n".join([self.question, *(f"{letter}. {option}" for letter, option in self.options.items())])


def read_choice(question: Row, image_folder: Path) -> Choice:
    """Reads a question and its options, from V* Bench's annotation beside the image or else from the question's text.

    The annotation, `sa_1.json` of `sa_1.jpg`, has whole sentences; its first is right and gets the label's letter.

    Raises:
        ValueError: there are fewer than two options, or the label is not one of them.
    """
    label = right_letter(question, "label")
    image = find_image(image_folder, question["image"])
    annotation = image.with_suffix(".json") if isinstance(image, Path) else None
    if annotation is not None and os.path.isfile(annotation):  # Path.is_file raises where a name is too long
        content = read_json(annotation, dict)
        if not isinstance(content.get("options"), list) or "question" not in content:
            raise ValueError(f"{annotation} has no question, or no list of options")
        if len(content["options"]) < 2:
            raise ValueError(f"{annotation} lists {len(content['options'])} options; there must be at least two")
        for text in (content["question"], *content["options"]):
            if not isinstance(text, str) or not text.strip():
                raise ValueError(f"{annotation}: {text!r} is the question or an option; it must be text")
        others = [letter for letter in letters(26) if letter != label]
        return Choice(content["question"], dict(zip([label, *others], content["options"], strict=False)))
    before, options = split_options(question["text"])
    if label not in options or not all(options.values()):
        found = f"question {question['question_id']!r} lists the options {options}, and its label is {label!r}"
        raise ValueError(f"{found}; it must list the label, and a text for every option")
    return Choice(before.split("\n")[0].strip(), options)


@torch.inference_mode()
def option_losses(engine: ChatEngine, tokens: ImageTokens, question: str, options: Sequence[str]) -> list[float]:
    """Computes the mean cross-entropy of each option as the answer to a question about an image, in one batch.

    Args:
        engine: A loaded model with its prompt format.
        tokens: The image as the model's `encode_tokens` returns it.
        question: The question without its options.
        options: The possible answers; an option's loss does not depend on the others.

    Raises:
        PromptTooLongError: the longest option exceeds the context.
    """
    if len(options) > 1 and rotates_by_length(engine.model):
        return [loss for option in options for loss in option_losses(engine, tokens, question, [option])]
    prompt, answers = prompt_and_answers(engine, question, options)
    visual = tokens.span.context
    longest = max(len(answer) for answer in answers)
    engine.check_length(len(prompt) - 1, visual, longest)
    model = engine.model
    rows = [torch.cat([prompt, answer]) for answer in answers]
    ids = pad_sequence(rows, True, engine.padding_id).to(model.device)
    mask = pad_sequence([torch.ones_like(row) for row in rows], True).to(model.device)
    logits = model(ids, attention_mask=mask, images=[tokens] * len(rows), logits_to_keep=longest + 1).logits
    right_padded = model.config.tokenizer_padding_side == "right"
    losses = []
    for row, answer in zip(logits.float(), answers, strict=True):
        start = 0 if right_padded else longest - len(answer)
        own = row[start : start + len(answer)]
        losses.append(torch.nn.functional.cross_entropy(own, answer.to(own.device)).item())
    return losses


def prompt_and_answers(engine: ChatEngine, question: str, options: Sequence[str]) -> tuple[Tensor, list[Tensor]]:
    """Tokenizes the prompt, IMAGE_TOKEN_INDEX in the image's position, and each option with its end."""
    conversation = engine.question(question, 1)
    prompt = tokenizer_image_token(conversation.get_prompt(), engine.tokenizer)
    answers = []
    for option in options:
        conversation.messages[-1][1] = option
        whole = tokenizer_image_token(conversation.get_prompt(), engine.tokenizer)
        if whole[: len(prompt)] != prompt:
            raise ValueError(f"the tokens of the prompt change when {option!r} follows it; use another --conv-mode")
        answers.append(torch.tensor(whole[len(prompt) :]))
    return torch.tensor(prompt), answers


def choose(engine: ChatEngine, preparer: Preparer, question: Question, choice: Choice) -> Answer:
    """Chooses an option: the answer's text is its letter, and its row gets the options and their losses."""
    prepared = preparer(question.image or "")
    if isinstance(prepared, Unreadable):
        return Answer(question, None, prepared.reason)
    with torch.inference_mode():
        encoded = encode_prepared(engine.model, [prepared])
    try:
        # The question decides what is split, not the options: all are judged on the same tokens.
        ids = prompt_ids(engine, choice.question)
        engine.check_length(len(ids) - 1, prepared.context, 0)
        (prepared,), (shown,) = refine_for_questions(engine, [ids], [prepared], encoded)
        losses = option_losses(engine, shown, choice.question, list(choice.options.values()))
    except PromptTooLongError as error:
        return Answer(question, None, str(error), prepared)
    by_letter = dict(zip(choice.options, losses, strict=True))
    if not all(map(math.isfinite, losses)):
        return Answer(question, None, f"the options' losses are not finite: {by_letter}", prepared)
    # In order of the letters: of equal losses the first would win, and an annotation's first option is the right one.
    chosen = min(sorted(by_letter), key=by_letter.__getitem__)
    return Answer(replace(question, extra={"options": choice.options, "losses": by_letter}), chosen, None, prepared)


def run(name: str, args: argparse.Namespace) -> int:
    """Answers the questions that the answers file lacks; returns the exit code.

    Raises:
        ValueError: contradictory flags, a bad question file, missing images, answers of another run, or another run
            that writes the same file.
    """
    check_model_flags(args)
    choices: list[Choice] = []

    def read(args: argparse.Namespace) -> list[Question]:
        rows = read_labelled(args.question_file, ("image", "text", "label")).values()
        choices.extend(read_choice(row, args.image_folder) for row in rows)
        return [
            Question(
                row["question_id"],
                choice.question,
                choice.text,
                find_image(args.image_folder, row["image"]),
                name_image(row["image"]),
                index=index,
            )
            for index, (row, choice) in enumerate(zip(rows, choices, strict=True))
        ]

    questions = read_inputs(args, read)
    with open_answers(args, questions) as answers:
        todo = find_unanswered(args, questions, answers)
        engine = load_engine(args)
        settings = run_settings(engine, Sampling(), 0, args, checkpoint_hash(args.model_path, args.model_base))
        settings |= {"decoding": None, "protocol": "likelihood"}
        preparer, make_row = Preparer.of(engine.model.get_vision_tower()), row_maker(args.model_path, settings)
        rows = ([make_row(choose(engine, preparer, question, choices[question.index]))] for question in todo)
        record(answers, rows, len(todo), resume=args.resume, settings=settings)
        return report(name, answers, args, questions)
