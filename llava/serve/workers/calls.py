"""Calls of command-line programs to controllers and workers, whose errors name the address and the flag to change."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx

from llava.serve.http.auth import bearer_header
from llava.serve.workers.frames import ErrorCode, split_frames
from llava.serve.workers.protocol import ANSWERS, STATUS, WorkerStatus, parsed
from llava.tls import tls_context
from qlip.command import escape

TIMEOUT = 5.0  # seconds for a controller's reply
ANSWER_TIMEOUT = httpx.Timeout(60.0, connect=5.0)  # a worker repeats its last frame more often than that


def register_worker(controller: str, worker: str, check_heart_beat: bool, token: str | None) -> None:
    """Asks a controller to register a worker.

    Args:
        controller: Its address.
        worker: The worker's address.
        check_heart_beat: Whether to drop the worker when it sends no heartbeats.
        token: The token shared by controller and worker.

    Raises:
        ConnectionError: no controller answers, or it refuses.
    """
    request = {"worker_name": worker, "check_heart_beat": check_heart_beat, "worker_status": None}
    timeout = 3 * TIMEOUT  # the controller asks the worker for its status first
    try:
        httpx.post(
            f"{controller}/register_worker",
            json=request,
            headers=bearer_header(token),
            timeout=timeout,
            verify=tls_context(),
            trust_env=False,
        ).raise_for_status()
    except httpx.HTTPError as error:
        raise _controller_error(error, controller) from None


def open_client(key: str | None) -> httpx.Client:
    """Opens a client of LLaVA's protocol.

    Args:
        key: API key to send with each request.
    """
    headers = {"User-Agent": "LLaVA Client"} | bearer_header(key)
    return httpx.Client(timeout=ANSWER_TIMEOUT, headers=headers, verify=tls_context(), trust_env=False)


def list_models(client: httpx.Client, controller: str) -> list[str]:
    """Lists the names of a controller's models, sorted, after it has asked its workers for their status.

    Raises:
        ConnectionError: no controller answers, or it refuses.
    """
    _post(client, controller, "refresh_all_workers")
    models = _post(client, controller, "list_models", field="models")
    if not (isinstance(models, list) and all(isinstance(model, str) for model in models)):
        raise _controller_error(ValueError("it lists no models"), controller)
    return sorted(models)


def find_worker(client: httpx.Client, controller: str, model: str) -> str:
    """Asks a controller for the address of a worker.

    Raises:
        ConnectionError: no controller answers, or it refuses.
        ValueError: it has no worker for the model.
    """
    address = _post(client, controller, "get_worker_address", {"model": model}, field="address")
    if not isinstance(address, str):
        raise _controller_error(ValueError("its reply to /get_worker_address names no address"), controller)
    if not address:
        raise ValueError(
            f"the controller at {controller} knows no worker for the model {model!r}; start one by"
            " python -m llava.serve.model_worker, or name another by --model-name"
        )
    return address


def find_conv_mode(client: httpx.Client, worker: str, model: str) -> str | None:
    """Asks a worker for the name of a model's prompt template; None where it states none, or does not answer.

    Args:
        client: the client.
        worker: address of a worker, or of a controller.
        model: its name; "" for a worker of one model.
    """
    try:
        reply = client.post(f"{worker}{STATUS}", timeout=TIMEOUT).raise_for_status()
        stated = parsed(WorkerStatus, reply.content).conv_modes
    except (httpx.HTTPError, ValueError):
        return None
    only = set(stated.values()) if not model else set()
    return only.pop() if len(only) == 1 else stated.get(model)


def stream_answer(client: httpx.Client, worker: str, request: dict[str, Any]) -> Iterator[str]:
    """Yields the pieces of an answer.

    Raises:
        ConnectionError: no worker answers, or it breaks off.
        RuntimeError: the worker refused, failed, or replied without an answer; the error repeats its message.
    """
    prompt = shown = request["prompt"]
    has_begun = False
    try:
        with client.stream("POST", f"{worker}{ANSWERS}", json=request) as reply:
            for frame in split_frames(reply.iter_raw()):
                text = _read_text(frame, reply.status_code)
                yield text[len(shown) :]
                shown, has_begun = text, True
    except httpx.HTTPError as error:
        reason = describe_error(error)
        if has_begun:
            after = len(shown) - len(prompt)
            raise ConnectionError(f"{worker} broke off after {after} characters of its answer ({reason})") from None
        raise ConnectionError(
            f"no worker answers at {worker} ({reason}); start one by python -m llava.serve.model_worker,"
            " or name another by --worker-address"
        ) from None
    if reply.status_code != 200:
        raise RuntimeError(f"HTTP {reply.status_code}")
    if not has_begun:
        raise RuntimeError(f"{worker} replied without an answer; its log may say why")


def _read_text(frame: bytes, status: int) -> str:
    try:
        message = json.loads(frame)
        text, code = message["text"], message["error_code"]
    except (ValueError, LookupError, TypeError):
        raise RuntimeError(f"HTTP {status}: {escape(frame[:500].decode(errors='replace'))}") from None
    if code != ErrorCode.NONE:
        raise RuntimeError(f"{escape(str(text))} (error code {code})")
    return text


def _post(
    client: httpx.Client, controller: str, route: str, request: dict[str, Any] | None = None, field: str | None = None
) -> Any:
    """Sends a request to a controller; returns a field of its reply, or None."""
    try:
        reply = client.post(f"{controller}/{route}", json=request).raise_for_status()
        return reply.json()[field] if field else None
    except httpx.HTTPError as error:
        raise _controller_error(error, controller) from None
    except (ValueError, LookupError, TypeError):  # another server
        raise _controller_error(ValueError(f"its reply to /{route} has no {field}"), controller) from None


def _controller_error(error: Exception, controller: str) -> ConnectionError:
    if isinstance(error, httpx.HTTPStatusError):
        return ConnectionError(f"the controller at {controller} refused: {describe_error(error)}")
    return ConnectionError(
        f"no controller answers at {controller} ({describe_error(error)}); start one by"
        " python -m llava.serve.controller, or name another by --controller-address"
    )


def describe_error(error: Exception) -> str:
    """Describes why a request failed, by the server's own message if it is one of ours."""
    if isinstance(error, httpx.LocalProtocolError):  # its text repeats the header, and so the key
        return type(error).__name__
    if not isinstance(error, httpx.HTTPStatusError):
        return str(error) or type(error).__name__
    try:
        return escape(str(error.response.json()["error"]["message"]))
    except (ValueError, LookupError, TypeError):
        return f"HTTP {error.response.status_code}"
