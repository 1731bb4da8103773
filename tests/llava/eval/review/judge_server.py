"""A server of the OpenAI protocol that answers with given reviews, and LLaVA-Bench in three questions."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests.llava.eval.files import write_json, write_rows

KEY = "sk-a-key-that-nobody-may-see"
FAULT = {"error": {"message": f"Incorrect API key provided: {KEY}", "type": "invalid_request_error"}}


@dataclass
class JudgeServer:
    """What the server was asked, and what it replies."""

    url: str = ""
    replies: list[Any] = field(default_factory=list)
    """Reviews, status codes of errors, or other bodies, in their order; the last one repeats."""
    requests: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)

    def next_reply(self) -> Any:
        return self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]


@contextmanager
def serve_judge(*replies: Any) -> Iterator[JudgeServer]:
    """Serves a judge on a free port of this machine."""
    judge = JudgeServer(replies=list(replies))

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            judge.requests.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            judge.keys.append(self.headers["Authorization"])
            assert self.path == "/v1/chat/completions"
            reply = judge.next_reply()
            if isinstance(reply, int):
                self.respond(reply, FAULT)
            elif not isinstance(reply, str):
                self.respond(200, reply)
            else:
                message = {"role": "assistant", "content": reply}
                choice = {"index": 0, "message": message, "finish_reason": "stop"}
                self.respond(
                    200, {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]}
                )

        def respond(self, status: int, content: Any) -> None:
            page = isinstance(content, bytes) and content.startswith(b"<")
            body = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            for name, value in (
                ("Content-Type", "text/html" if page else "application/json"),
                ("Content-Length", str(len(body))),
            ):
                self.send_header(name, value)
            self.send_header("retry-after-ms", "1")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    judge.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    try:
        yield judge
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


QUESTIONS = [
    {"question_id": 0, "image": "001.png", "text": "What colour is the ring?", "category": "conv"},
    {"question_id": 1, "image": "001.png", "text": "Describe the picture.", "category": "detail"},
    {"question_id": 2, "image": "002.png", "text": "How many objects are there?", "category": "conv"},
]
CONTEXT = [
    {"id": "001", "image": "001.png", "caption": "A purple ring."},
    {"id": "002", "image": "002.png", "caption": ["Three objects.", "One is blue."]},
]
RULES = {
    "default": {"role": "Assistant"},
    "llava_bench_conv": {"role": "Assistant", "prompt": "Score the answers."},
    "llava_bench_detail": {"role": "Helper", "prompt": "Score the descriptions."},
}


def write_answers(path: Path, *texts: str) -> Path:
    """Answers to `QUESTIONS`, as LLaVA's runner writes them."""
    rows = [
        {"question_id": row["question_id"], "prompt": row["text"], "text": text, "answer_id": f"{path.stem}-{number}"}
        for number, (row, text) in enumerate(zip(QUESTIONS, texts, strict=True))
    ]
    return write_rows(path, [{**row, "model_id": path.stem, "metadata": {}} for row in rows])


def write_bench(folder: Path) -> list[str]:
    """Writes LLaVA-Bench as released; the flags that name its labels."""
    write_rows(folder / "questions.jsonl", QUESTIONS)
    files = {
        "--context": write_rows(folder / "context.jsonl", CONTEXT),
        "--rule": write_json(folder / "rule.json", RULES),
        "--answer-list": write_answers(folder / "answers_gpt4.jsonl", "It is purple.", "A ring.", "There are three."),
    }
    return [text for flag, path in files.items() for text in (flag, str(path))]
