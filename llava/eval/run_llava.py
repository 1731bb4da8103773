"""Asks a model one question about images: `python -m llava.eval.run_llava --image-file FILE --query TEXT`.

`eval_model` takes LLaVA's documented arguments object as well as a parsed command line.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from llava.command import OneLineParser, add_length_flag, integer, read_name, real, run_command
from llava.serve.loading import add_model_flags, check_model_flags, load_engine
from llava.text import check_question


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the command line; a wrong one ends the process with exit code 2."""
    parser = OneLineParser(prog="run_llava", description="Ask a model one question about images.")
    add_model_flags(parser)
    parser.add_argument("--image-file", type=read_name, help="images, separated by --sep (default: the demo picture)")
    parser.add_argument("--query", help="the question")
    parser.add_argument("--sep", default=",", help="separator of the images' names")
    parser.add_argument("--temperature", type=real(), default=0.2)
    parser.add_argument("--top_p", type=real(0, 1, above=True))
    parser.add_argument("--num_beams", type=integer(), default=1)
    add_length_flag(parser, "--max_new_tokens", default=512)
    args = parser.parse_args(argv)
    if args.query is None:
        parser.error("--query is required")
    return args


ELSEWHERE = {
    "llava.images": ("load_image", "load_images"),
    "llava.mm_utils": ("get_model_name_from_path", "process_images", "tokenizer_image_token"),
    "llava.model.builder": ("load_pretrained_model",),
    "llava.conversation": ("SeparatorStyle", "conv_templates"),
    "llava.utils": ("disable_torch_init",),
}
"""Names that LLaVA's clients import from here, by the module that has them."""


def __getattr__(name: str) -> Any:
    """Finds a name of `ELSEWHERE`; its module is imported then."""
    for module, names in ELSEWHERE.items():
        if name in names:
            return getattr(import_module(module), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def image_parser(args: Any) -> list[str]:
    """Splits an arguments object's `image_file` at its `sep`.

    Raises:
        ValueError: the separator is empty.
    """
    if not args.sep:
        raise ValueError("--sep is empty; it must be at least one character, such as ','")
    return args.image_file.split(args.sep)


def eval_model(args: Any) -> None:
    """Answers one question and prints the answer.

    Args:
        args: An object with `query` and any of the command line's other flags as attributes: `model_path`,
            `model_base`, `conv_mode`, `image_file` (names joined by `sep`), `temperature`, `max_new_tokens` and so on.
            `model_name` is accepted and ignored.

    Raises:
        ValueError: for an empty question, an image that is not named or cannot be loaded, wrong settings, a text-only
            model, or a prompt too long for the model.
    """
    from llava.images import load_images
    from llava.serve.engine.params import Sampling
    from llava.utils import demo_picture_path

    settings = _with_defaults(args)
    check_question(settings.query or "", "--query")
    check_model_flags(settings)
    if settings.model_path and not settings.image_file:
        raise ValueError("--image-file is required with --model-path")
    sources = image_parser(settings) if settings.image_file else [demo_picture_path()]
    images = load_images(sources, allow_private=True)
    sampling = Sampling(settings.temperature, settings.top_p, settings.num_beams, settings.max_new_tokens)
    engine = load_engine(settings)
    asked = engine.question(settings.query, len(images))
    print("".join(engine.reply(asked, images, sampling, settings.shorten)).strip())


def _with_defaults(args: Any) -> argparse.Namespace:
    """Fills in the flags that LLaVA's documented arguments object does not have."""
    settings = parse_args([f"--query={getattr(args, 'query', None) or ''}"])
    for name in vars(settings):
        if hasattr(args, name):
            setattr(settings, name, getattr(args, name))
    settings.shorten = getattr(args, "shorten", not hasattr(args, "max_new_tokens"))
    return settings


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit code."""
    args = parse_args(argv)
    return run_command("run_llava", lambda: eval_model(args))


if __name__ == "__main__":
    sys.exit(main())
