"""ASGI middleware: inserts a script that runs before Gradio's modules; those of the page's `head` run after them."""

from __future__ import annotations

from importlib.resources import files

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HEAD = b"<head>"
GRADIO = b"window.gradio_config"


class InsertFirstScript:
    """ASGI middleware: inserts `frames.js` at the top of the head of Gradio's page, and leaves other replies alone."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        script = files("llava.serve.web").joinpath("frames.js").read_bytes()
        self.head = HEAD + b"<script>" + script + b"</script>"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one connection."""
        if scope["type"] != "http" or scope["method"] not in ("GET", "HEAD") or "/gradio_api/" in scope["path"]:
            await self.app(scope, receive, send)
            return
        held: list[Message] = []  # the start and the body of a document, until the body is whole

        async def send_on(message: Message) -> None:
            begins_document = message["type"] == "http.response.start" and _is_html(message)
            if begins_document and scope["method"] == "HEAD":
                del MutableHeaders(scope=message)["content-length"]  # it would be that of the page without the script
            elif begins_document or held:
                held.append(message)
                if not begins_document and not message.get("more_body"):
                    for each in self._insert(held[0], b"".join(part.get("body", b"") for part in held[1:])):
                        await send(each)
                return
            await send(message)

        await self.app(scope, receive, send_on)

    def _insert(self, start: Message, body: bytes) -> list[Message]:
        if GRADIO in body:
            body = body.replace(HEAD, self.head, 1)
            MutableHeaders(scope=start)["content-length"] = str(len(body))
        return [start, {"type": "http.response.body", "body": body}]


def _is_html(start: Message) -> bool:
    return MutableHeaders(scope=start).get("content-type", "").startswith("text/html")
