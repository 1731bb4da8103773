"""scripts.vllm_client against a server of vLLM's protocol. `scripts.harness.vllm_check` runs against a live vLLM."""

from __future__ import annotations

import base64
import io
import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import httpx
import pytest
import torch
from PIL import Image

import qlip
from llava.utils import demo_model_path
from scripts.vllm_client import ask, chat_request, main
from tests.qlip.integrations.models import WIDTH, make_language_model, make_processor, picture

PICTURES = [picture(56, 56, 0), picture(112, 168, 1), picture(140, 98, 2)]
SETTINGS = {"alpha": 0.3, "llm_positions": "sequential", "llm_size_bias": 0.0}


class Server(HTTPServer):
    """Answers /v1/chat/completions as vLLM does, with the shapes of the embeddings that it received."""

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
    assert sent["add_special_tokens"] is True
    assert sent["messages"][0]["content"][-1] == {"type": "text", "text": "what?"}


def test_a_refusal_is_reported_in_the_servers_words(server):
    with pytest.raises(RuntimeError, match='answered 400: {"error": "no image"}'):
        ask(server.address, chat_request("llava", "what?", [], 9, 0.0))


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        ("<html>", "did not answer JSON, so it is not a vLLM server: <html>"),
        ('{"detail": "x"}', "answered without a message: {'detail': 'x'}"),
        ('{"choices": []}', "answered without a message"),
    ],
)
def test_what_is_no_answer_is_named_with_its_server(monkeypatch, reply, words):
    request = httpx.Request("POST", "http://host")
    monkeypatch.setattr(httpx, "post", lambda *args, **kwargs: httpx.Response(200, text=reply, request=request))
    with pytest.raises(RuntimeError, match=f"http://host/v1 {words}"):
        ask("http://host/v1", {})


@pytest.mark.parametrize(
    ("path", "words"),
    [
        (str(demo_model_path()), "is not in transformers' format; convert it: python -m scripts.convert_checkpoint"),
        ("/no/such", "there is no checkpoint folder '/no/such'"),
    ],
)
def test_a_checkpoint_in_another_format_is_refused_before_a_model_is_built(path, words, tmp_path, capsys):
    file = tmp_path / "a.png"
    Image.new("RGB", (20, 20)).save(file)
    assert main(["--model-path", path, "--image-file", str(file), "--query", "?"]) != 0
    assert words in capsys.readouterr().err


def test_command_line(server, tmp_path, capsys):
    make_language_model("llava").save_pretrained(tmp_path / "model")
    make_processor("llava").save_pretrained(tmp_path / "model")
    PICTURES[1].save(tmp_path / "picture.png")
    arguments = ["--model-path", str(tmp_path / "model"), "--served-name", "llava", "--query", "what?"]
    arguments += ["--image-file", str(tmp_path / "picture.png"), "--alpha", "0.3"]
    assert main([*arguments, "--server", server.address]) == 0
    (count,) = map(len, qlip.vllm_image_embeds(qlip.attach(make_language_model("llava"), **SETTINGS)[0], PICTURES[1:2]))
    assert capsys.readouterr().out == f"torch.float32 ({count}, {WIDTH})\n"


@pytest.mark.parametrize(("start", "writes_it"), [("", False), ("{{ bos_token }}", True)])
def test_the_start_token_is_asked_for_where_the_chat_template_leaves_it_out(server, tmp_path, start, writes_it):
    """vLLM tokenises a chat without special tokens; a template of llava-hf's has none, and the model would miss one."""
    processor = make_processor("llava")
    processor.tokenizer.bos_token = processor.tokenizer.convert_ids_to_tokens(5)
    processor.chat_template = (
        start + "{% for message in messages %}USER: {{ message['content'][0]['text'] }}{% endfor %}"
    )
    make_language_model("llava").save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    PICTURES[1].save(tmp_path / "picture.png")
    arguments = ["--model-path", str(tmp_path / "model"), "--query", "what?", "--server", server.address]
    assert main([*arguments, "--image-file", str(tmp_path / "picture.png")]) == 0
    assert server.requests[0][2]["add_special_tokens"] is not writes_it


def test_the_checkpoints_own_settings_count(server, tmp_path, capsys):
    model, _ = qlip.attach(make_language_model("llava"), **SETTINGS, max_tokens=8)
    model.save_pretrained(tmp_path / "model")
    make_processor("llava").save_pretrained(tmp_path / "model")
    PICTURES[1].save(tmp_path / "picture.png")
    arguments = ["--model-path", str(tmp_path / "model"), "--query", "what?", "--server", server.address]
    assert main([*arguments, "--image-file", str(tmp_path / "picture.png")]) == 0
    (count,) = map(len, qlip.vllm_image_embeds(model, PICTURES[1:2]))
    assert capsys.readouterr().out == f"torch.float32 ({count}, {WIDTH})\n"
