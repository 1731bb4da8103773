"""Embeddings for vLLM: the documented shapes, and a client against a server that speaks the documented protocol.

No vLLM runs here: what is checked is that its side of the interface, as documented, is met.
"""

from __future__ import annotations

import base64
import io
import json
import logging
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
import torch

import qlip
from scripts.vllm_client import ask, chat_request, main
from tests.qlip.integrations.hosts import (
    IMAGE_TOKEN,
    WIDTH,
    make_language_model,
    make_processor,
    make_vision_model,
    picture,
)

PICTURES = [picture(56, 56, 0), picture(112, 168, 1), picture(140, 98, 2)]
SETTINGS = {"alpha": 0.3, "llm_positions": "sequential", "llm_size_bias": 0.0}


@pytest.mark.parametrize("kind", ["llava", "llava_next"])
@torch.no_grad()
def test_embeddings_are_what_the_language_model_would_have_read(kind):
    """vLLM puts them where <image> stands and counts on: so do transformers' own inputs_embeds."""
    model, processor = qlip.attach(make_language_model(kind), make_processor(kind), **SETTINGS)
    embeds = qlip.vllm_image_embeds(model, PICTURES, batch_size=2)
    assert [tuple(image.shape[1:]) for image in embeds] == [(WIDTH,)] * 3
    assert len({len(image) for image in embeds}) == 3
    prompt = "<image> and <image> and <image>?"
    inputs = processor(images=PICTURES, text=[prompt], return_tensors="pt")
    assert int((inputs["input_ids"] == IMAGE_TOKEN).sum()) == sum(map(len, embeds))
    text = [
        model.get_input_embeddings()(processor.tokenizer(t, return_tensors="pt").input_ids)[0] for t in (" and ", "?")
    ]
    joined = torch.cat([embeds[0], text[0], embeds[1], text[0], embeds[2], text[1]])[None]
    untouched, _ = qlip.detach(model, processor)
    expected = untouched(inputs_embeds=joined).logits
    model, processor = qlip.attach(untouched, make_processor(kind), **SETTINGS)
    torch.testing.assert_close(model(**inputs).logits, expected, atol=1e-4, rtol=0)


def test_what_vllm_cannot_follow_is_said(caplog):
    model, _ = qlip.attach(make_language_model("llava"), llm_weight="native")
    with caplog.at_level(logging.WARNING):
        qlip.vllm_image_embeds(model, PICTURES[:1])
    assert "can't follow llm_positions='raster', llm_size_bias=-0.25, llm_weight='native'" in caplog.text
    caplog.clear()
    qlip.vllm_image_embeds(qlip.attach(model, **SETTINGS, llm_weight="each")[0], PICTURES[:1])
    assert caplog.text == ""


def test_other_models_are_refused():
    with pytest.raises(TypeError, match="LlavaForConditionalGeneration is no attached LLaVA model"):
        qlip.vllm_image_embeds(make_language_model("llava"), PICTURES[:1])
    with pytest.raises(TypeError, match="CLIPVisionModel is no attached LLaVA model"):
        qlip.vllm_image_embeds(qlip.attach(make_vision_model("clip"))[0], PICTURES[:1])


class Server(HTTPServer):
    """Answers /v1/chat/completions in vLLM's way with the shapes of the embeddings that it was sent."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests: list[tuple[str, str | None, dict]] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self):  # noqa: N802 (the base class's name)
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append((self.path, self.headers.get("Authorization"), body))
        parts = body["messages"][0]["content"]
        embeds = [part["image_embeds"] for part in parts if part["type"] == "image_embeds"]
        tensors = [torch.load(io.BytesIO(base64.b64decode(text)), weights_only=True) for text in embeds]
        status = 200 if tensors else 400
        content = " ".join(f"{tensor.dtype} {tuple(tensor.shape)}" for tensor in tensors)
        reply = (
            {"choices": [{"message": {"role": "assistant", "content": content}}]} if tensors else {"error": "no image"}
        )
        data = json.dumps(reply).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        """Silent."""


@pytest.fixture
def server():
    running = Server()
    thread = threading.Thread(target=running.serve_forever, daemon=True)
    thread.start()
    yield running
    running.shutdown()
    running.server_close()
    thread.join(5)


def test_the_client_sends_every_image_and_reads_the_answer(server):
    model, _ = qlip.attach(make_language_model("llava").to(torch.float16), **SETTINGS)
    embeds = qlip.vllm_image_embeds(model, PICTURES)
    body = chat_request("llava", "what?", embeds, max_tokens=9, temperature=0.0)
    answer = ask(server.address, body, api_key="secret")
    assert answer == " ".join(f"torch.float16 {tuple(image.shape)}" for image in embeds)
    path, key, sent = server.requests[0]
    assert (path, key) == ("/v1/chat/completions", "Bearer secret")
    assert (sent["model"], sent["max_tokens"], sent["temperature"]) == ("llava", 9, 0.0)
    assert sent["messages"][0]["content"][-1] == {"type": "text", "text": "what?"}


def test_a_refusal_is_told_in_the_servers_words(server):
    with pytest.raises(RuntimeError, match='answered 400: {"error": "no image"}'):
        ask(server.address, chat_request("llava", "what?", [], 9, 0.0))


def test_command_line(server, tmp_path, capsys):
    make_language_model("llava").save_pretrained(tmp_path / "model")
    make_processor("llava").save_pretrained(tmp_path / "model")
    PICTURES[1].save(tmp_path / "picture.png")
    arguments = ["--model-path", str(tmp_path / "model"), "--served-name", "llava", "--query", "what?"]
    arguments += ["--image-file", str(tmp_path / "picture.png"), "--alpha", "0.3"]
    assert main([*arguments, "--server", server.address]) == 0
    (count,) = map(len, qlip.vllm_image_embeds(qlip.attach(make_language_model("llava"), **SETTINGS)[0], PICTURES[1:2]))
    assert capsys.readouterr().out == f"torch.float32 ({count}, {WIDTH})\n"
