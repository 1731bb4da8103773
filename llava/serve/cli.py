"""Terminal chat about pictures: `llava`, or `python -m llava.serve.cli`.

Answers questions that are typed, piped, or given by `--prompt`. Answers go to stdout, everything else to stderr; in a
terminal the prompts are printed to stdout too. The model's libraries are loaded after the flags have been checked.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
from collections.abc import Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from llava.command import OneLineParser, add_length_flag, exit_on_interrupt, read_name, real, run_command
from llava.conversation import Conversation
from llava.serve.drawings import (
    ATTRIBUTION,
    QUADTREE,
    check_drawings,
    try_to_write_attributions,
    write_attributions,
    write_quadtrees,
)
from llava.serve.engine.params import Sampling
from llava.serve.loading import DEMO_NOTICE, add_model_flags, check_model_flags, load_engine, qlip_option
from llava.serve.terminal import escape_controls, is_terminal, is_utf8, print_label, read_line
from llava.text import check_later_question, check_question
from llava.utils import demo_picture_path
from qlip import __version__

if TYPE_CHECKING:
    from PIL import Image

    from llava.serve.engine import ChatEngine
    from llava.serve.engine.answer_stream import AnswerStream

EMPTY = "..."
"""An empty answer in the history of a conversation; a turn without text would be left out of the next prompt."""


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the command line; exits with code 2 on a wrong flag."""
    parser = OneLineParser(
        prog="llava",
        description="Chat about pictures in the terminal.",
        epilog="`llava doctor` reports versions, devices and a self-test, for bug reports; see `llava doctor --help`.",
    )
    add_model_flags(parser)
    parser.add_argument(
        "--image-file", action="append", type=read_name, metavar="FILE|URL", help="picture to talk about; repeatable"
    )
    parser.add_argument("--prompt", action="append", help="answer this question and exit; repeatable")
    asked = parser.add_argument_group("with --prompt")
    asked.add_argument(
        "--one-conversation",
        action="store_true",
        help="the questions are turns of one conversation (default: each begins a new one)",
    )
    asked.add_argument(
        "--each-image",
        action="store_true",
        help="ask everything about each picture alone, and print FILE: ANSWER (default: about all pictures together)",
    )
    asked.add_argument(
        "--json", action="store_true", help="print a line of JSON for each answer, with its tokens and times"
    )
    parser.add_argument("--temperature", type=real(), help="0 is greedy (default: 0.2 in a chat, 0 with --prompt)")
    add_length_flag(parser, "--max-new-tokens", default=Sampling.max_new_tokens)
    parser.add_argument(QUADTREE, metavar="PNG", type=Path, help="draw the picture's quadtree to this file")
    parser.add_argument(
        ATTRIBUTION, metavar="PNG", type=Path, help="draw what the last answer depended on in the picture to this file"
    )
    parser.add_argument("--debug", action="store_true", help="show prompts, answers' tokens and times, errors in full")
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line, or `llava doctor`, and returns the exit code."""
    argv = sys.argv[1:] if argv is None else argv
    if argv and argv[0] == "doctor":
        from llava.serve import doctor

        return doctor.main(argv[1:])
    args = parse_args(argv)
    return run_command("llava", lambda: run(args), debug=args.debug)


def run(args: argparse.Namespace) -> int:
    """Loads the pictures and the model, then answers the prompts or starts a chat."""
    check_prompt_flags(args)
    temperature = args.temperature
    if temperature is None:
        temperature = 0.0 if args.prompt else Sampling.temperature
    sampling = Sampling(temperature=temperature, max_new_tokens=args.max_new_tokens)
    with exit_on_interrupt():  # the chat has its own Ctrl-C, which stops an answer
        engine, images, sources = load(args)
        if args.prompt:
            answer_prompts(engine, images, sources, sampling, args)
            return 1 if len(images) < len(args.image_file or ()) else 0
    failed = chat(engine, images, sampling, args)
    return 1 if failed and not is_terminal() else 0


def check_prompt_flags(args: argparse.Namespace) -> None:
    """Raises ValueError if flags that need `--prompt` come without it, or a prompt cannot be asked."""
    given = [name for name in ("one_conversation", "each_image", "json") if getattr(args, name)]
    if given and not args.prompt:
        raise ValueError(f"{', '.join('--' + name.replace('_', '-') for name in given)} needs --prompt")
    for number, prompt in enumerate(args.prompt or (), start=1):
        check_question(prompt, f"--prompt {number}" if len(args.prompt) > 1 else "--prompt")
        if args.one_conversation and number > 1:
            check_later_question(prompt)


def load(args: argparse.Namespace) -> tuple[ChatEngine, list[Image.Image], list[str]]:
    """Checks the flags, opens the pictures, loads the model and writes the drawings.

    Returns:
        The engine, the pictures, and where each is from.
    """
    from llava.images import load_images, load_readable_images

    # Errors should show before pictures and model are loaded.
    qlip_option(args)
    if args.show_quadtree and args.qlip is False:
        raise ValueError("--no-qlip contradicts --show-quadtree")
    check_model_flags(args)
    if args.model_path and not args.image_file:
        raise ValueError("--image-file is required with --model-path")
    sources = args.image_file or [str(demo_picture_path())]
    check_drawings({QUADTREE: args.show_quadtree, ATTRIBUTION: args.show_attribution}, sources)
    if args.each_image and not (args.show_quadtree or args.show_attribution):  # whose files are numbered
        images, sources = load_readable_images(sources, allow_private=True)
    else:
        images = load_images(sources, allow_private=True)  # the user's own network
    if not args.model_path:
        print(DEMO_NOTICE, file=sys.stderr)
    engine = load_engine(args)
    if args.show_quadtree:
        write_quadtrees(engine, images, args.show_quadtree)
    return engine, images, sources


def answer_prompts(
    engine: ChatEngine,
    images: Sequence[Image.Image],
    sources: Sequence[str],
    sampling: Sampling,
    args: argparse.Namespace,
) -> None:
    """Answers the prompts and prints one line for each answer.

    Args:
        engine: answers.
        images: asked about all together, or one after the other with `--each-image`.
        sources: where each image is from.
        sampling: how tokens are chosen.
        args: the flags of `--prompt`.
    """
    from llava.serve.engine.prompting import break_image_token

    pairs = list(zip(images, sources, strict=True))
    for number, group in enumerate([[pair] for pair in pairs] if args.each_image else [pairs], start=1):
        conversation, shown = None, [image for image, _ in group]
        for prompt in args.prompt:
            if conversation is None or not args.one_conversation:
                conversation = engine.question(prompt, len(group))
            else:
                conversation.append_message(conversation.roles[0], prompt)
                conversation.append_message(conversation.roles[1], None)
            show_prompt(conversation, args.debug)
            asked = conversation.copy()
            answer = engine.submit(conversation, shown, sampling, shorten=args.shorten)
            text = "".join(answer).strip()
            show_cost(answer, args.debug)
            conversation.messages[-1][1] = break_image_token(text) or EMPTY
            line = format_answer([source for _, source in group], prompt, text, answer, args)
            print(escape_controls(line), flush=True)
        write_attributions(engine, asked, shown, text, args.show_attribution, number)


def format_answer(
    sources: Sequence[str], prompt: str, text: str, answer: AnswerStream, args: argparse.Namespace
) -> str:
    """Formats an answer in one line: its words, after the file's name with `--each-image`, or JSON with `--json`."""
    if args.json:
        record = {
            "images": sources,
            "prompt": prompt,
            "answer": text,
            "finish_reason": answer.finish_reason,
            "visual_tokens": answer.usage.visual_tokens,
            "prompt_tokens": answer.usage.prompt_tokens,
            "generated_tokens": answer.usage.generated_tokens,
            "first_pass_tokens": answer.usage.first_pass_tokens,
            "seconds": {step: round(seconds, 4) for step, seconds in answer.usage.seconds.items()},
        }
        return json.dumps(record, ensure_ascii=not is_utf8(sys.stdout))  # whose own escapes may be no JSON
    line = " ".join(text.split())
    return f"{sources[0]}: {line}" if args.each_image else line


def chat(engine: ChatEngine, images: Sequence[Image.Image], sampling: Sampling, args: argparse.Namespace) -> int:
    """Reads questions until the end of input, or an empty line in a terminal, and streams the answers.

    Args:
        engine: answers.
        images: that the chat is about.
        sampling: how tokens are chosen.
        args: `debug`, `shorten` and `show_attribution` are read.

    Returns:
        How many questions were refused.
    """
    from llava.serve.engine.errors import GenerationError
    from llava.serve.engine.prompting import break_image_token

    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")  # other bytes than UTF-8 fail in the question that has them
    if is_terminal():
        with suppress(ImportError):  # Windows has it in the terminal itself
            import readline  # noqa: F401  (the keys that edit a line and recall earlier ones; a paste of several lines)
        print("llava: an empty line or Ctrl-D ends the chat; Ctrl-C stops an answer", file=sys.stderr)
    conversation = engine.new_conversation()
    user, assistant = conversation.roles
    failed = 0
    while question := read_line(f"{user}: "):
        before = len(conversation.messages)
        try:
            if before > conversation.offset:
                check_later_question(question)
            else:
                question = engine.first_question(question, len(images))
            check_question(question)
            conversation.append_message(user, question)
            conversation.append_message(assistant, None)
            show_prompt(conversation, args.debug)
            answer = stream_answer(engine, conversation, images, sampling, args)
        except (ValueError, GenerationError) as error:  # too long, for example: drop it
            if isinstance(error, GenerationError) and not error.out_of_memory:
                raise
            print(f"llava: error: {error}", file=sys.stderr)
            del conversation.messages[before:]
            failed += 1
            continue
        try_to_write_attributions(engine, conversation, images, answer, args.show_attribution)
        conversation.messages[-1][1] = break_image_token(answer) or EMPTY
    return failed


def stream_answer(
    engine: ChatEngine,
    conversation: Conversation,
    images: Sequence[Image.Image],
    sampling: Sampling,
    args: argparse.Namespace,
) -> str:
    """Prints the answer as it is generated, until Ctrl-C, and returns its text.

    Raises:
        KeyboardInterrupt: Ctrl-C where questions come from a file or a pipe, where none is typed again.
    """
    pieces: list[str] = []
    print_label(f"{conversation.roles[1]}: ")
    stopped = (KeyboardInterrupt,) if is_terminal() else ()
    with suppress(*stopped), closing(engine.submit(conversation, images, sampling, shorten=args.shorten)) as answer:
        for piece in answer:
            pieces.append(piece)
            print(escape_controls(piece), end="", flush=True)
    print()
    if pieces:
        show_cost(answer, args.debug)
    return "".join(pieces).strip()


def show_prompt(conversation: Conversation, debug: bool) -> None:
    """Prints the prompt exactly as the model receives it, with `--debug`."""
    if debug:
        print(f"prompt: {conversation.get_prompt()!r}", file=sys.stderr)


def show_cost(answer: AnswerStream, debug: bool) -> None:
    """Prints the tokens and times of an answer that has ended, with `--debug`."""
    if debug:
        usage = answer.usage
        first = f", {usage.first_pass_tokens} in a first pass" if usage.first_pass_tokens else ""
        tokens = f"{usage.text_tokens} text tokens, {usage.visual_tokens} visual{first}, {usage.cached_tokens} known"
        times = ", ".join(f"{step} {seconds:.3f}" for step, seconds in usage.seconds.items())
        print(f"cost: {tokens}; {usage.generated_tokens} generated; seconds: {times}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
