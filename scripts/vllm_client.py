"""Asks a vLLM server about pictures that QLIP's tower has seen here: `python -m scripts.vllm_client`.

The server is started as docs/SCALING.md says. Written to vLLM's documented interface; not run against a live vLLM.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import httpx
import torch
from torch import Tensor
from transformers import AutoModelForImageTextToText, AutoProcessor

import qlip
from llava.serve.images import load_image
from llava.utils import device_flag
from qlip.vllm import encode_embeds


def chat_request(
    model: str, text: str, embeds: Sequence[Tensor], max_tokens: int, temperature: float
) -> dict[str, Any]:
    """The body of a request to /v1/chat/completions: each image's embeddings, then the text."""
    images = [{"type": "image_embeds", "image_embeds": encode_embeds(image)} for image in embeds]
    content = [*images, {"type": "text", "text": text}]
    return {
        "model": model,
        "messages": [{"role": "user", "content": content}],
        "max_tokens": max_tokens,
        "temperature": temperature,
    }


def ask(server: str, body: dict[str, Any], api_key: str | None = None, timeout: float = 120.0) -> str:
    """Sends a request and returns the answer's text.

    Args:
        server: base address, such as "http://localhost:8000/v1".
        body: what `chat_request` gives.
        api_key: sent as a bearer token.
        timeout: seconds to wait for the answer.

    Raises:
        RuntimeError: the server refused the request; the text is the server's.
        httpx.HTTPError: the server can't be reached.
    """
    headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
    response = httpx.post(f"{server.rstrip('/')}/chat/completions", json=body, headers=headers, timeout=timeout)
    if response.is_error:
        raise RuntimeError(f"the server answered {response.status_code}: {response.text[:500]}")
    return response.json()["choices"][0]["message"]["content"]


def load_eyes(model_path: str, device: str, **settings: Any) -> Any:
    """A transformers checkpoint, attached with what vLLM can follow; of its weights only tower and projector stay."""
    model = AutoModelForImageTextToText.from_pretrained(model_path, dtype="auto" if device == "cpu" else torch.float16)
    processor = AutoProcessor.from_pretrained(model_path)
    model, _ = qlip.attach(model, processor, llm_positions="sequential", llm_size_bias=0.0, **settings)
    model.model.language_model = model.lm_head = None
    return model.to(device)


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Ask a vLLM server about pictures seen through QLIP.")
    parser.add_argument("--server", default="http://localhost:8000/v1", help="base address of the vLLM server")
    parser.add_argument("--model-path", required=True, help="the checkpoint that the server runs, transformers' format")
    parser.add_argument("--served-name", help="the server's name for it; by default the path")
    parser.add_argument("--image-file", nargs="+", required=True)
    parser.add_argument("--query", required=True)
    parser.add_argument("--alpha", type=float, default=qlip.QLIPConfig.alpha)
    parser.add_argument("--max-tokens", type=int, default=qlip.QLIPConfig.max_tokens, help="visual tokens an image")
    parser.add_argument("--max-new-tokens", type=int, default=512)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--device", type=device_flag, default="cpu")
    parser.add_argument("--api-key")
    options = parser.parse_args(arguments)
    model = load_eyes(options.model_path, options.device, alpha=options.alpha, max_tokens=options.max_tokens)
    embeds = qlip.vllm_image_embeds(model, [load_image(file) for file in options.image_file])
    name = options.served_name or options.model_path
    body = chat_request(name, options.query, embeds, options.max_new_tokens, options.temperature)
    print(ask(options.server, body, options.api_key))


if __name__ == "__main__":
    main()
