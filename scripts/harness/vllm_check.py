"""Compares a live vLLM server's answers with transformers': `python -m scripts.harness.vllm_check`.

QLIP encodes generated scenes here. The server gets the embeddings; transformers' own `generate` reads the same tokens
in this process. The greedy answers must be the same, and so must the log-probabilities of the answers' tokens.
docs/SCALING.md says how to install vLLM and start the server.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, get_args

from llava.command import OneLineParser, integer, parse_and_run, real
from llava.eval.score.rows import Row, read_json_lines
from llava.serve.http.addresses import server_url
from llava.utils import device_flag
from playground.presets import PRESETS
from qlip.config import Tiling
from scripts.vllm_client import SERVER, chat_request, load_attached, post, template_starts

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

SEED = 78
LONGEST = 64


class Answer(NamedTuple):
    """A greedy answer."""

    text: str
    scores: list[float]
    """Log-probabilities of its tokens, the end token included."""


def ask_server(server: str, name: str, text: str, embeds: Tensor, add_start: bool) -> Answer:
    """Asks the server about one image's embeddings (N, D)."""
    body = chat_request(name, text, [embeds], LONGEST, 0.0, add_start)
    (choice,) = post(server, body | {"logprobs": True})["choices"]
    tokens = choice["logprobs"]["content"]
    return Answer(choice["message"]["content"], [token["logprob"] for token in tokens])


def ask_transformers(model: Any, processor: Any, text: str, image: Image) -> Answer:
    """Asks the attached model, by transformers' `generate` and the checkpoint's chat template."""
    import torch

    content = [{"type": "image"}, {"type": "text", "text": text}]
    prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    start = not template_starts(processor)  # as the server is asked to
    inputs = processor(images=[image], text=[prompt], add_special_tokens=start, return_tensors="pt").to(model.device)
    with torch.inference_mode():
        output = model.generate(
            **inputs, max_new_tokens=LONGEST, do_sample=False, return_dict_in_generate=True, output_logits=True
        )
    new = output.sequences[0, inputs["input_ids"].shape[1] :]
    scores = torch.cat(output.logits).float().log_softmax(-1).gather(-1, new[:, None])[:, 0]
    return Answer(processor.tokenizer.decode(new, skip_special_tokens=True), scores.tolist())


def check(args: argparse.Namespace) -> None:
    """Asks both and compares.

    Raises:
        RuntimeError: an answer or a log-probability differs.
    """
    import torch

    import qlip
    from llava.images import load_image
    from playground.scenes import write_scenes

    dtype = getattr(torch, args.dtype)
    settings = {"alpha": args.alpha, "max_tokens": args.max_tokens, "tiling": args.tiling}
    model, processor = load_attached(args.model_path, dtype, **settings)
    model.to(args.device)
    server, name, add_start = args.server or SERVER, args.served_name or args.model_path, not template_starts(processor)
    with tempfile.TemporaryDirectory() as folder:
        write_scenes(Path(folder), PRESETS["detail"], SEED, args.scenes)
        rows = [row for _, row in read_json_lines(Path(folder) / "questions.jsonl")]
        images = {row["image"]: load_image(Path(folder) / "images" / row["image"]) for row in rows}
    embeds = dict(zip(images, qlip.vllm_image_embeds(model, list(images.values())), strict=True))
    # First the first question about each picture, so that pictures with different numbers of tokens come together.
    each = len(rows) // args.scenes
    rows = [row for number in range(each) for row in rows[number::each]]

    def ask(row: Row) -> Answer:
        return ask_server(server, name, row["text"], embeds[row["image"]], add_start)

    with ThreadPoolExecutor(args.clients) as clients:
        theirs = list(clients.map(ask, rows))
    gaps, differing = [0.0], 0
    for row, answer in zip(rows, theirs, strict=True):
        ours = ask_transformers(model, processor, row["text"], images[row["image"]])
        if answer.text.strip() == ours.text.strip():
            gaps += [abs(a - b) for a, b in zip(ours.scores, answer.scores, strict=True)]
        else:
            differing += 1
            print(f"  {row['text']}: {ours.text!r}, vLLM {answer.text!r}")
    count, tokens = len(rows), sum(map(len, embeds.values())) / len(embeds)
    print(f"{count - differing} of {count} answers the same, with {tokens:.1f} visual tokens on average")
    print(f"log-probabilities of the tokens of same answers: differ by at most {max(gaps):.2g}")
    if differing or not all(gap <= args.tolerance for gap in gaps):
        raise RuntimeError("vLLM and transformers disagree")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line."""
    parser = OneLineParser(prog="vllm_check", description="Compare a vLLM server's answers with transformers'.")
    parser.add_argument("--server", type=server_url, help=f"base address of the vLLM server (default: {SERVER})")
    parser.add_argument("--model-path", required=True, help="the checkpoint that the server runs, transformers' format")
    parser.add_argument("--served-name", help="the server's name for it; by default the path")
    parser.add_argument("--scenes", type=integer(), default=6, help="scenes, nine questions each (%(default)s)")
    parser.add_argument("--clients", type=integer(), default=8, help="requests at a time (%(default)s)")
    parser.add_argument("--alpha", type=real(infinite=True), help="by default the checkpoint's, else 0.8")
    parser.add_argument("--max-tokens", type=integer(), help="visual tokens of an image; by default the checkpoint's")
    parser.add_argument("--tiling", choices=get_args(Tiling), help="LLaVA-1.6: one quadtree an image, or one a tile")
    parser.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), default="float32", help="(%(default)s)")
    parser.add_argument("--tolerance", type=real(), default=1e-3, help="of log-probabilities (%(default)s)")
    parser.add_argument("--device", type=device_flag, default="cpu", help="cpu or cuda (%(default)s)")
    return parse_and_run(parser, check, argv)


if __name__ == "__main__":
    sys.exit(main())
