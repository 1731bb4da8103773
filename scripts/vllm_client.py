"""Asks a vLLM server about images that QLIP encodes here: `python -m scripts.vllm_client`.

The server is started as docs/SCALING.md says; `scripts.harness.vllm_check` holds its answers against transformers'.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from llava.command import OneLineParser, integer, parse_and_run, real
from llava.serve.http.addresses import server_url
from llava.serve.http.flags import key_text
from llava.utils import device_flag

if TYPE_CHECKING:
    from torch import Tensor

SERVER = "http://localhost:8000/v1"
FOLLOWED: Mapping[str, Any] = {
    "llm_positions": "sequential",
    "llm_size_bias": 0.0,
    "llm_weight": "each",
    "budget": "score",
}
"""What vLLM can follow: it counts positions one by one, biases no attention, and no question splits an image."""


def chat_request(
    model: str, text: str, embeds: Sequence[Tensor], max_tokens: int, temperature: float, add_start: bool = True
) -> dict[str, Any]:
    """Builds the body of a request to /v1/chat/completions: each image's embeddings, then the text.

    Args:
        model: the server's name for it.
        text: the question.
        embeds: one (N_i, D) tensor per image.
        max_tokens: length of the answer, at most.
        temperature: 0 for greedy answers.
        add_start: let the tokenizer write the start token, which vLLM leaves to the chat template otherwise; see
            `template_starts`.
    """
    from qlip.integrations.vllm import encode_embeds

    images = [{"type": "image_embeds", "image_embeds": encode_embeds(image)} for image in embeds]
    content = [*images, {"type": "text", "text": text}]
    return {
        "model": model,
        "messages": [{"role": "user", "content": content}],
        "max_tokens": max_tokens,
        "temperature": temperature,
        "add_special_tokens": add_start,
    }


def template_starts(processor: Any) -> bool:
    """Finds whether the checkpoint's chat template writes the start token; templates of llava-hf do not."""
    if not getattr(processor, "chat_template", None) or not (start := processor.tokenizer.bos_token):
        return False
    content = [{"type": "text", "text": "Hi"}]
    return processor.apply_chat_template([{"role": "user", "content": content}]).startswith(start)


def post(server: str, body: Mapping[str, Any], api_key: str | None = None, timeout: float = 120.0) -> Any:
    """Sends a request and reads the server's reply, parsed.

    Args:
        server: base address, such as "http://localhost:8000/v1".
        body: from `chat_request`.
        api_key: sent as a bearer token.
        timeout: seconds to wait for the reply.

    Raises:
        RuntimeError: the server refused the request, or does not answer in JSON; the text is the server's.
        ConnectionError: the server can't be reached.
    """
    import httpx

    headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
    try:
        response = httpx.post(f"{server.rstrip('/')}/chat/completions", json=body, headers=headers, timeout=timeout)
    except httpx.HTTPError as error:
        why = str(error) or type(error).__name__
        raise ConnectionError(f"no vLLM server answers at {server} ({why}); name yours by --server") from None
    if response.is_error:
        raise RuntimeError(f"the server answered {response.status_code}: {response.text[:500]}")
    try:
        return response.json()
    except ValueError:
        raise RuntimeError(f"{server} did not answer JSON, so it is not a vLLM server: {response.text[:500]}") from None


def ask(server: str, body: Mapping[str, Any], api_key: str | None = None) -> str:
    """Sends a request and reads the answer's text. For the arguments and errors see `post`."""
    reply = post(server, body, api_key)
    try:
        return str(reply["choices"][0]["message"]["content"] or "")
    except (IndexError, KeyError, TypeError):
        raise RuntimeError(f"{server} answered without a message: {str(reply)[:500]}") from None


def load_attached(model_path: str, dtype: Any = "auto", **settings: Any) -> tuple[Any, Any]:
    """Loads a checkpoint of transformers' format and attaches QLIP as vLLM can follow it.

    Args:
        model_path: folder or hub id.
        dtype: of the weights.
        **settings: fields of `QLIPConfig` that override the checkpoint's own; None keeps those.

    Returns:
        The model and its processor.

    Raises:
        ValueError: it is in LLaVA's format, or a weight is missing.
    """
    from transformers import AutoModelForImageTextToText, AutoProcessor

    import qlip
    from llava.model.loading.files import read_json
    from llava.model.loading.folder import local_folder
    from llava.model.loading.strict import read_pretrained

    folder = local_folder(model_path)
    if "vision_config" not in read_json(folder / "config.json"):  # transformers would build a 7B of its defaults
        raise ValueError(
            f"{model_path} is not in transformers' format; convert it: python -m scripts.convert_checkpoint"
            f" --model-path {model_path} --out FOLDER"
        )
    loaded = read_pretrained(AutoModelForImageTextToText, folder, dtype=dtype)
    if loaded.missing:
        raise ValueError(f"{model_path}: no file holds the weight {min(loaded.missing)!r}")
    given = {name: value for name, value in settings.items() if value is not None}
    return qlip.attach(loaded.model, AutoProcessor.from_pretrained(folder), **FOLLOWED, **given)


def command(args: argparse.Namespace) -> None:
    """Asks the server and prints its answer."""
    import torch

    import qlip
    from llava.images import load_images

    images = load_images(args.image_file)
    dtype = "auto" if args.device == "cpu" else torch.float16
    model, processor = load_attached(args.model_path, dtype, alpha=args.alpha, max_tokens=args.max_tokens)
    model.model.language_model = model.lm_head = None
    embeds = qlip.vllm_image_embeds(model.to(args.device), images)
    name = args.served_name or args.model_path
    add_start = not template_starts(processor)
    body = chat_request(name, args.query, embeds, args.max_new_tokens, args.temperature, add_start)
    print(ask(args.server or SERVER, body, args.api_key))


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line."""
    parser = OneLineParser(prog="vllm_client", description="Ask a vLLM server about images that QLIP encodes.")
    # No default: argparse would read it as an address, which loads httpx, before it reports a wrong flag.
    parser.add_argument("--server", type=server_url, help=f"base address of the vLLM server (default: {SERVER})")
    parser.add_argument("--model-path", required=True, help="the checkpoint that the server runs, transformers' format")
    parser.add_argument("--served-name", help="the server's name for it; by default the path")
    parser.add_argument("--image-file", nargs="+", required=True)
    parser.add_argument("--query", required=True)
    parser.add_argument("--alpha", type=real(infinite=True), help="by default the checkpoint's, else 0.8")
    parser.add_argument(
        "--max-tokens", type=integer(), help="visual tokens of an image, at most; by default the checkpoint's"
    )
    parser.add_argument("--max-new-tokens", type=integer(), default=512)
    parser.add_argument("--temperature", type=real(), default=0.0)
    parser.add_argument("--device", type=device_flag, default="cpu")
    parser.add_argument("--api-key", type=key_text)
    return parse_and_run(parser, command, argv)


if __name__ == "__main__":
    sys.exit(main())
