"""Terminal chat about pictures: `llava`, or `python -m llava.serve.cli`.

Turns flags into a loaded engine and runs a conversation on it, typed or given by `--prompt`. Answers go to stdout,
everything else goes to stderr. How answers come about is the engine's matter.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from PIL import Image

import qlip
from llava.command import OneLineParser, integer, real, run_command
from llava.conversation import Conversation, conv_templates
from llava.mm_utils import get_model_name_from_path
from llava.model.builder import load_pretrained_model
from llava.model.checkpoint import inspect, local_folder, require_tower
from llava.serve.engine import ChatEngine, EngineLimits
from llava.serve.images import load_images
from llava.serve.sampling import Sampling
from llava.serve.templates import warn_of_guess
from llava.utils import check_device, default_device, demo_model_path, demo_picture_path

DEMO_NOTICE = """\
This is the embedded demo: a tiny model that only knows coloured shapes. For a real one:
  llava --model-path liuhaotian/llava-v1.5-7b --image-file PICTURE"""


def add_model_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that say which model to load, where, and how it sees."""
    parser.add_argument("--model-path", help="checkpoint folder or hub id (default: the embedded demo model)")
    parser.add_argument("--model-base", help="base model of a LoRA or projector-only checkpoint")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, mps (default: the best this machine has)")
    parser.add_argument(
        "--conv-mode",
        choices=conv_templates,
        metavar="NAME",
        help="prompt template (default: the checkpoint's, or vicuna_v1)",
    )
    quantised = parser.add_mutually_exclusive_group()
    quantised.add_argument("--load-8bit", action="store_true", help="load the language model in 8 bits")
    quantised.add_argument("--load-4bit", action="store_true", help="load the language model in 4 bits")
    parser.add_argument("--qlip", action=argparse.BooleanOptionalAction, help="see by quadtree")
    parser.add_argument("--alpha", type=real(infinite=True), help="split threshold of the quadtree; implies --qlip")
    parser.add_argument("--max-tokens", type=integer(), help="most visual tokens per picture; implies --qlip")
    parser.add_argument("--image-size", type=integer(), help="shorter side of a picture in pixels; implies --qlip")


def qlip_option(args: argparse.Namespace) -> bool | dict[str, Any] | None:
    """Returns the `qlip` argument of `load_pretrained_model`: None for what the checkpoint says.

    Raises:
        ValueError: if quadtree flags come with `--no-qlip`.
    """
    given = {name: getattr(args, name) for name in ("alpha", "max_tokens", "image_size")}
    given = {name: value for name, value in given.items() if value is not None}
    if given and args.qlip is False:
        flags = ", ".join("--" + name.replace("_", "-") for name in given)
        raise ValueError(f"--no-qlip contradicts {flags}")
    return given or args.qlip


def check_model_flags(args: argparse.Namespace, *, needs_tower: bool = True) -> None:
    """Checks what the flags of `add_model_flags` name, without loading it.

    Args:
        args: the parsed flags.
        needs_tower: whether there will be pictures, which a language model alone does not see.

    Raises:
        ValueError: this machine has no such device, or the model's folder holds no checkpoint that sees pictures.
    """
    if args.device is not None:
        check_device(args.device)
    if args.model_path and Path(args.model_path).is_dir() and args.model_base is None:
        config = inspect(Path(args.model_path)).config
        if needs_tower:
            require_tower(config, args.model_path)


def load_engine(
    args: argparse.Namespace,
    *,
    switchable: bool = False,
    limits: EngineLimits | None = None,
    use_flash_attn: bool = False,
    needs_tower: bool = True,
) -> ChatEngine:
    """Loads the model that the flags of `add_model_flags` name.

    Args:
        args: The parsed flags.
        switchable: Load a tower that can see both ways, so that each request may choose; what the flags or the
            checkpoint say is then the default.
        limits: What the engine takes on at a time.
        use_flash_attn: FlashAttention 2 in the language model.
        needs_tower: Refuse a language model alone.

    Raises:
        FileNotFoundError: no such checkpoint, or a file that it needs is absent.
        ValueError: contradictory flags, no such device, or a checkpoint that cannot be used.
    """
    model_path = str(args.model_path or demo_model_path())
    option = qlip_option(args)
    check_model_flags(args, needs_tower=needs_tower)
    quadtree = True
    if switchable:
        config = inspect(local_folder(model_path)).config
        quadtree = bool(config.qlip if option is None else option)
        if config.mm_vision_select_feature == "patch":
            option = option or True
    tokenizer, model, image_processor, context_len = load_pretrained_model(
        model_path,
        args.model_base,
        get_model_name_from_path(model_path),
        load_8bit=args.load_8bit,
        load_4bit=args.load_4bit,
        device=args.device or default_device(),
        use_flash_attn=use_flash_attn,
        qlip=option,
    )
    if needs_tower and image_processor is None:  # the model came from the hub, or consists of two parts
        require_tower(model.config, model_path)
    engine = ChatEngine(tokenizer, model, image_processor, context_len, args.conv_mode, limits, quadtree)
    if args.conv_mode is None:
        warn_of_guess(model_path, model.config, engine.conv_mode)
    return engine


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the command line; a wrong one ends the process with exit code 2."""
    parser = OneLineParser(prog="llava", description="Chat about pictures in the terminal.")
    add_model_flags(parser)
    parser.add_argument("--image-file", action="append", metavar="FILE|URL", help="picture to talk about; repeatable")
    parser.add_argument("--prompt", action="append", help="answer this question and exit; repeatable")
    parser.add_argument("--temperature", type=real(), help="0 is greedy (default: 0.2 in a chat, 0 with --prompt)")
    parser.add_argument(
        "--max-new-tokens", type=integer(), default=512, help="longest answer, in tokens (default: 512)"
    )
    parser.add_argument("--show-quadtree", metavar="PNG", type=Path, help="write what the model sees to this file")
    parser.add_argument("--debug", action="store_true", help="show prompts, and errors in full")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit code."""
    args = parse_args(argv)
    return run_command("llava", lambda: run(args), debug=args.debug)


def run(args: argparse.Namespace) -> int:
    """Loads pictures and model, then answers the given prompts or chats."""
    temperature = args.temperature
    if temperature is None:
        temperature = 0.0 if args.prompt else Sampling.temperature
    sampling = Sampling(temperature=temperature, max_new_tokens=args.max_new_tokens)
    qlip_option(args), check_model_flags(args)  # what is wrong should show before pictures and model are loaded
    if args.model_path and not args.image_file:
        raise ValueError("--image-file is required with --model-path")
    sources = args.image_file or [demo_picture_path()]
    check_drawings(args.show_quadtree, sources)
    images = load_images(sources)
    if not args.model_path:
        print(DEMO_NOTICE, file=sys.stderr)
    engine = load_engine(args)
    if args.show_quadtree:
        write_quadtrees(engine, images, args.show_quadtree)
    if args.prompt:
        answer_prompts(engine, images, args.prompt, sampling, args.debug)
    else:
        chat(engine, images, sampling, args.debug)
    return 0


def check_drawings(path: Path | None, sources: Sequence[str | Path]) -> None:
    """Raises ValueError unless each picture's drawing can be written beside `path` without replacing a picture."""
    if path is None:
        return
    Image.init()
    if Image.registered_extensions().get(path.suffix.lower()) not in Image.SAVE:
        raise ValueError(f"--show-quadtree {path}: the name must end as an image's, for example in .png")
    for place in range(1, len(sources) + 1):
        target = drawing_path(path, place)
        if target.is_dir():
            raise ValueError(f"--show-quadtree {target} is a folder; name a file")
        for source in sources:
            if target.exists() and Path(source).exists() and target.samefile(source):
                raise ValueError(
                    f"--show-quadtree would write to {target}, a picture of --image-file; name another file"
                )


def drawing_path(path: Path, place: int) -> Path:
    """The file of a picture's drawing, by its place from 1; from the second on, the name gets the place."""
    return path if place == 1 else path.with_stem(f"{path.stem}-{place}")


def write_quadtrees(engine: ChatEngine, images: Sequence[Image.Image], path: Path) -> None:
    """Writes each picture with its leaves drawn in; from the second on, the file's name gets a number.

    Raises:
        ValueError: if the model sees without a quadtree.
    """
    tower = engine.model.get_vision_tower()
    if not hasattr(tower, "partition"):
        raise ValueError("--show-quadtree needs a model that sees by quadtree; add --qlip")
    for i, (image, pixels) in enumerate(zip(images, engine.prepare_images(images), strict=True), start=1):
        target = drawing_path(path, i)
        leaves = tower.partition(pixels)
        qlip.draw_leaves(image, leaves).save(target)
        print(f"{target}: {len(leaves)} visual tokens", file=sys.stderr)


def answer_prompts(
    engine: ChatEngine, images: Sequence[Image.Image], prompts: Sequence[str], sampling: Sampling, debug: bool
) -> None:
    """Prints one line per prompt, each the answer of a fresh conversation."""
    for prompt in prompts:
        show_prompt(engine.question(prompt, len(images)), debug)
        answer = engine.ask(prompt, images, sampling)
        print(" ".join(answer.split()), flush=True)


def chat(engine: ChatEngine, images: Sequence[Image.Image], sampling: Sampling, debug: bool) -> None:
    """Reads questions until an empty line or the end of input, and streams the answers."""
    conversation = engine.new_conversation()
    user, assistant = conversation.roles
    while text := read_line(f"{user}: "):
        first = len(conversation.messages) == conversation.offset
        conversation.append_message(user, engine.first_question(text, len(images)) if first else text)
        conversation.append_message(assistant, None)
        show_prompt(conversation, debug)
        try:
            conversation.messages[-1][1] = stream_answer(engine, conversation, images, sampling)
        except ValueError as error:  # too long for the context: the question is dropped, the chat goes on
            print(f"llava: error: {error}", file=sys.stderr)
            del conversation.messages[-2:]


def read_line(prompt: str) -> str:
    """Returns the typed line, stripped; an empty one at the end of input."""
    try:
        return input(prompt).strip()
    except EOFError:
        print()
        return ""


def stream_answer(
    engine: ChatEngine, conversation: Conversation, images: Sequence[Image.Image], sampling: Sampling
) -> str:
    """Prints the answer as it comes and returns it; Ctrl-C ends it early."""
    pieces: list[str] = []
    print(f"{conversation.roles[1]}: ", end="", flush=True)
    with suppress(KeyboardInterrupt), closing(engine.reply(conversation, images, sampling)) as stream:
        for piece in stream:
            pieces.append(piece)
            print(piece, end="", flush=True)
    print()
    return "".join(pieces).strip() or "..."  # without any text the next prompt would run two turns together


def show_prompt(conversation: Conversation, debug: bool) -> None:
    """Prints the prompt as the model gets it."""
    if debug:
        print(f"prompt: {conversation.get_prompt()!r}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
