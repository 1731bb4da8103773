"""V* Bench as its authors ask it: which option is the likeliest answer? `python -m llava.eval.vstar_likelihood`.

The question is put without its options; an option's loss is the mean cross-entropy of its tokens, the end of the answer
included, and the option of the lowest loss is chosen. Its letter is written as the answer, for `llava.eval.eval_vstar`.
Source: arXiv 2312.14135 and its `vstar_bench_eval.py`. Generated answers are the runner's matter.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from llava.command import OneLineParser, run_command
from llava.eval.run.answer_file import AnswerFile
from llava.eval.run.command import STOPPED, open_questions, report, row_maker
from llava.eval.run.inputs import add_input_flags, check_asked_images, check_chunk, check_question_file
from llava.eval.run.lock import only_run
from llava.eval.run.metadata import checkpoint_hash, run_settings
from llava.eval.run.pictures import Preparer, Unreadable
from llava.eval.run.progress import Progress
from llava.eval.run.questions import Question
from llava.eval.run.runner import Outcome
from llava.eval.score.choice import label_letter
from llava.eval.score.parse import listed_options
from llava.eval.score.rows import Row, read_json, read_labelled
from llava.mm_utils import tokenizer_image_token
from llava.model.image_tokens import ImageTokens
from llava.serve.engine import ChatEngine
from llava.serve.engine.errors import PromptTooLong
from llava.serve.engine.params import Sampling
from llava.serve.loading import add_model_flags, check_model_flags, load_engine

NAME = "vstar_likelihood"


@dataclass(frozen=True)
class Choice:
    """A question with its possible answers."""

    question: str
    """Without its options."""

    options: dict[str, str]
    """Letter -> answer."""


def read_choice(question: Row, image_folder: Path) -> Choice:
    """The question and its options, from V* Bench's annotation beside the picture or else from the question's text.

    The annotation, `sa_1.json` of `sa_1.jpg`, has whole sentences, the right one first, which gets the label's letter.

    Raises:
        ValueError: there are fewer than two options, or the label is none of them.
    """
    label = label_letter(question["label"])
    annotation = (image_folder / question["image"]).with_suffix(".json")
    if annotation.is_file():
        content = read_json(annotation, dict)
        if not isinstance(content.get("options"), list) or "question" not in content:
            raise ValueError(f"{annotation} has no question, or no list of options")
        others = [letter for letter in map(chr, range(ord("A"), ord("Z") + 1)) if letter != label]
        return Choice(content["question"], dict(zip([label, *others], content["options"], strict=False)))
    options = listed_options(question["text"])
    if len(options) < 2 or label not in options:
        raise ValueError(
            f"question {question['question_id']!r} lists the options {options}, and its label is {label!r}"
        )
    return Choice(question["text"].split("\n")[0].strip(), options)


@torch.inference_mode()
def option_losses(engine: ChatEngine, picture: ImageTokens, question: str, options: Sequence[str]) -> list[float]:
    """The mean cross-entropy of each option as the answer to a question about a picture, all in one batch.

    Args:
        engine: A loaded model with its prompt format.
        picture: As the model's `encode_tokens` gives it.
        question: Without its options.
        options: The possible answers; a loss does not depend on the others.

    Raises:
        PromptTooLong: the longest option exceeds the context.
    """
    prompt, answers = prompt_and_answers(engine, question, options)
    visual = picture.span.context
    longest = max(len(answer) for answer in answers)
    engine.check_length(len(prompt) - 1, visual, longest)
    model = engine.model
    rows = [torch.cat([prompt, answer]) for answer in answers]
    ids = pad_sequence(rows, True, engine.padding_id).to(model.device)
    mask = pad_sequence([torch.ones_like(row) for row in rows], True).to(model.device)
    logits = model(ids, attention_mask=mask, images=[picture] * len(rows), logits_to_keep=longest + 1).logits
    right_padded = model.config.tokenizer_padding_side == "right"
    losses = []
    for row, answer in zip(logits.float(), answers, strict=True):
        start = 0 if right_padded else longest - len(answer)
        own = row[start : start + len(answer)]
        losses.append(torch.nn.functional.cross_entropy(own, answer.to(own.device)).item())
    return losses


def prompt_and_answers(engine: ChatEngine, question: str, options: Sequence[str]) -> tuple[Tensor, list[Tensor]]:
    """Token ids of the prompt, IMAGE_TOKEN_INDEX where the picture stands, and of each option with what ends it."""
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


def ask(engine: ChatEngine, preparer: Preparer, index: int, question: Question, choice: Choice) -> Outcome:
    """Chooses an option; the outcome's text is its letter, and its row will have the options and their losses."""
    picture = preparer(str(question.image))
    if isinstance(picture, Unreadable):
        return Outcome(index, question, None, picture.reason)
    with torch.inference_mode():
        encoded = engine.model.encode_tokens([picture.image])[0]
    try:
        losses = option_losses(engine, encoded, choice.question, list(choice.options.values()))
    except PromptTooLong as error:
        return Outcome(index, question, None, str(error), picture)
    by_letter = dict(zip(choice.options, losses, strict=True))
    asked = replace(question, extra={"options": choice.options, "losses": by_letter})
    return Outcome(index, asked, min(by_letter, key=by_letter.__getitem__), None, picture)


def run(args: argparse.Namespace) -> int:
    """Answers what the file of answers lacks; returns 1 if questions stayed without an answer.

    Raises:
        ValueError: impossible flags, a bad question file, images that are not there, answers of another run, or another
            run at work on them.
    """
    check_model_flags(args)
    check_chunk(args)
    check_question_file(args.question_file)
    rows = read_labelled(args.question_file, ("image", "text", "label")).values()
    choices = [read_choice(row, args.image_folder) for row in rows]
    questions = [
        Question(row["question_id"], choice.question, choice.question, args.image_folder / row["image"], row["image"])
        for row, choice in zip(rows, choices, strict=True)
    ]
    check_asked_images(args, questions)
    answers = AnswerFile(args.answers_file)
    answers.check_place(args.question_file)
    with only_run(answers.path):
        return _answer(args, questions, answers, choices)


def _answer(
    args: argparse.Namespace, questions: Sequence[Question], answers: AnswerFile, choices: Sequence[Choice]
) -> int:
    """Chooses an option for what the file of answers lacks."""
    answers.check_rows(questions, args.resume)
    todo = open_questions(args, questions, answers)
    engine = load_engine(args)
    settings = run_settings(engine, Sampling(), 0, args, checkpoint_hash(args.model_path, args.model_base))
    settings |= {"decoding": None, "protocol": "likelihood"}
    if args.resume:
        answers.check(settings)
    answers.start(args.resume)
    preparer = Preparer.of(engine.model.get_vision_tower())
    progress, make_row = Progress(len(todo), show=True), row_maker(args.model_path, settings)
    for index, question in todo:
        row = make_row(ask(engine, preparer, index, question, choices[index]))
        answers.append([row])
        progress.add([row])
    progress.close()
    return report(NAME, answers, args, questions)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit code."""
    parser = OneLineParser(prog=NAME, description="Answer V* Bench by the likelihood of its options.")
    add_model_flags(parser)
    parser.add_argument("--question-file", type=Path, required=True, help="V* Bench's test_questions.jsonl")
    parser.add_argument("--image-folder", type=Path, required=True, help="where the pictures lie")
    parser.add_argument("--answers-file", type=Path, required=True, help="the answers")
    add_input_flags(parser)
    parser.add_argument(
        "--resume", action=argparse.BooleanOptionalAction, default=True, help="go on where a stopped run ended"
    )
    args = parser.parse_args(argv)
    return run_command(NAME, lambda: run(args), interrupted=STOPPED)


if __name__ == "__main__":
    sys.exit(main())
