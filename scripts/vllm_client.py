"""Asks a vLLM server about images that QLIP encodes here: `python -m scripts.vllm_client`.

The server is started as docs/SCALING.md says. Written to vLLM's documented interface; not run against a live vLLM.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from llava.command import OneLineParser, integer, parse_and_run, real
from llava.serve.http.addresses import server_url
from llava.serve.http.flags import key_text
from llava.utils import device_flag
from qlip import QLIPConfig

if TYPE_CHECKING:
    from torch import Tensor

SERVER = "http://localhost:8000/v1"


def chat_request(
    model: str, text: str, embeds: Sequence[Tensor], max_tokens: int, temperature: float
) -> dict[str, Any]:
    """Builds the body of a request to /v1/chat/completions: each image's embeddings, then the text."""
    from qlip.integrations.vllm import encode_embeds

    images = [{"type": "image_embeds", "image_embeds": encode_embeds(image)} for image in embeds]
    content = [*images, {"type": "text", "text": text}]
    return {
        "model": model,
        "messages": [{"role": "user", "content": content}],
        "max_tokens": max_tokens,
        "temperature": temperature,
    }


def ask(server: str, body: dict[str, Any], api_key: str | None = None, timeout: float = 120.0) -> str:
    """Sends a request and reads the answer's text.

    Args:
        server: base address, such as "http://localhost:8000/v1".
        body: from `chat_request`.
        api_key: sent as a bearer token.
        timeout: seconds to wait for the answer.

    Raises:
        RuntimeError: the server refused the request; the text is the server's.
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
    return response.json()["choices"][0]["message"]["content"]


def load_vision_part(model_path: str, device: str, **settings: Any) -> Any:
    """Loads a transformers checkpoint with QLIP attached as vLLM can follow it; keeps only the tower and projector."""
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor

    import qlip

    model = AutoModelForImageTextToText.from_pretrained(model_path, dtype="auto" if device == "cpu" else torch.float16)
    processor = AutoProcessor.from_pretrained(model_path)
    model, _ = qlip.attach(model, processor, llm_positions="sequential", llm_size_bias=0.0, **settings)
    model.model.language_model = model.lm_head = None
    return model.to(device)


def command(args: argparse.Namespace) -> None:
    """Asks the server and prints its answer."""
    import qlip
    from llava.images import load_images

    images = load_images(args.image_file)
    model = load_vision_part(args.model_path, args.device, alpha=args.alpha, max_tokens=args.max_tokens)
    embeds = qlip.vllm_image_embeds(model, images)
    name = args.served_name or args.model_path
    body = chat_request(name, args.query, embeds, args.max_new_tokens, args.temperature)
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
    parser.add_argument("--alpha", type=real(infinite=True), default=QLIPConfig.alpha)
    parser.add_argument("--max-tokens", type=integer(), default=QLIPConfig.max_tokens, help="visual tokens an image")
    parser.add_argument("--max-new-tokens", type=integer(), default=512)
    parser.add_argument("--temperature", type=real(), default=0.0)
    parser.add_argument("--device", type=device_flag, default="cpu")
    parser.add_argument("--api-key", type=key_text)
    return parse_and_run(parser, command, argv)


if __name__ == "__main__":
    sys.exit(main())
