"""LLaVA's own client and web server, as their users know them, on the `requests` library that they are written with.

Written from the protocol's description alone; it shares no code with what it tests.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import requests


class UpstreamError(Exception):
    """What LLaVA's web server shows instead of an answer."""


def call(url: str, body: Any = None) -> Any:
    reply = requests.post(url, json=body) if body is not None else requests.post(url)
    assert reply.status_code == 200
    return reply.json()


def models_of(controller: str) -> list[str]:
    call(controller + "/refresh_all_workers")
    return sorted(call(controller + "/list_models")["models"])


def address_of(controller: str, model: str) -> str:
    return call(controller + "/get_worker_address", {"model": model})["address"]


def raw_chunks(url: str, body: Any) -> Iterator[dict[str, Any]]:
    """The chunks of a stream, whatever its status: LLaVA's clients do not look at that."""
    headers = {"User-Agent": "LLaVA Client"}
    with requests.post(url + "/worker_generate_stream", headers=headers, json=body, stream=True, timeout=600) as reply:
        for chunk in reply.iter_lines(decode_unicode=False, delimiter=b"\0"):
            if chunk:
                yield json.loads(chunk.decode())


def chat(url: str, body: dict[str, Any]) -> Iterator[str]:
    """The answer as the web server shows it, chunk by chunk."""
    for data in raw_chunks(url, body):
        if data["error_code"] != 0:
            raise UpstreamError(data["text"] + f" (error_code: {data['error_code']})")
        assert data["text"].startswith(body["prompt"])
        yield data["text"][len(body["prompt"]) :].strip()
