"""Gets answers from a LLaVA controller and its workers over LLaVA's protocol; prepares the drawings here.

The drawings need no model, since a quadtree depends on pixels only. They are cut for a tower of a given native size;
the protocol does not report a worker's own.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from types import SimpleNamespace
from typing import Any

import httpx
from PIL import Image
from transformers import CLIPImageProcessorPil

from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.conversation import Conversation, conv_templates
from llava.model.vision.prepared_image import PreparedImage, prepare_leaves, prepare_pixels
from llava.serve.engine.explain import Explanation
from llava.serve.engine.params import QLIPOptions
from llava.serve.engine.prompting import Turn, build_conversation, separators
from llava.serve.engine.vision import CLIP_VIEW
from llava.serve.http.auth import bearer_header
from llava.serve.http.failures import RequestError
from llava.serve.web.backend import AnswerPiece, FirstPass, Query, pixels_of
from llava.serve.web.clip_sizes import NATIVE_SIZE, PATCH_SIZE
from llava.serve.web.encoded_pictures import encode_pictures
from llava.serve.workers import frames, protocol
from llava.serve.workers.frames import ErrorCode
from llava.tls import tls_context
from qlip.config import QLIPConfig
from qlip.cutting import ImageCutter

logger = logging.getLogger(__name__)

MAX_TOKENS = 4096
MAX_FRAME = 2**20  # bytes; every frame repeats the prompt
CONNECT = 10.0  # seconds to reach the controller
SILENCE = 300.0  # seconds that an answer may pause, including its time in the queue
CONV_MODE = "vicuna_v1"  # LLaVA v1.5's, for models whose workers state none or one unknown here

KINDS = {ErrorCode.WORKER: "worker_failed", ErrorCode.NO_WORKER: "no_worker", ErrorCode.UNREACHABLE: "unreachable"}


@dataclass(frozen=True)
class Template:
    """A model's prompt format."""

    conv_mode: str
    image_token: str = DEFAULT_IMAGE_TOKEN

    def new_conversation(self) -> Conversation:
        """Creates an empty conversation."""
        return conv_templates[self.conv_mode].copy()


class ControllerBackend:
    """The models of a controller's workers."""

    defaults: QLIPConfig | None = QLIPConfig()
    quadtree = True
    max_tokens = MAX_TOKENS
    name = ""
    explains = False

    def __init__(
        self,
        url: str,
        conv_mode: str | None = None,
        api_key: str | None = None,
        reload: bool = False,
        native_size: int = NATIVE_SIZE,
    ) -> None:
        """
        Args:
            url: Address of the controller.
            conv_mode: Key of `conv_templates`, the prompt format of all models; None takes what their workers state,
                or "vicuna_v1", LLaVA v1.5's.
            api_key: API key for the controller, if it requires one.
            reload: List the models each time; otherwise they are listed once.
            native_size: Side, in pixels, of the images that the workers' towers were trained on.

        Raises:
            ValueError: the address is not an http(s) URL, the prompt format is unknown, or the native size too small.
        """
        if not url.startswith(("http://", "https://")):
            raise ValueError(f"the controller's address is {url!r}; it must begin with http:// or https://")
        if (conv_mode or CONV_MODE) not in conv_templates:
            raise ValueError(f"unknown conv_mode {conv_mode!r}; known: {', '.join(conv_templates)}")
        if native_size < PATCH_SIZE:
            raise ValueError(f"the towers' native size is {native_size}; it must be at least {PATCH_SIZE}")
        self.url = url.rstrip("/")
        self.conv_mode = conv_mode
        self.headers = bearer_header(api_key)
        self.reload = reload
        self.native_size = native_size
        self.native_tokens = (native_size // PATCH_SIZE) ** 2
        square = {"height": native_size, "width": native_size}
        self.clip_processor = CLIPImageProcessorPil(size={"shortest_edge": native_size}, crop_size=square)
        self.pixels = pixels_of(self.clip_processor, PATCH_SIZE)
        self._models: list[str] = []
        self._stated: dict[str, str] = {}  # model -> key of `conv_templates`

    @property
    def note(self) -> str:
        """See `Backend`."""
        return (
            f"Drawn for a vision tower of {self.native_size} pixels in patches of {PATCH_SIZE}. A worker with another "
            "one sees otherwise, and one that knows no QLIP sees by CLIP's grid only; the number of tokens under an "
            "answer is the worker's own, where it tells one."
        )

    async def template(self, model: str) -> Template:
        """Finds a model's prompt format; asks for it if the models have not been listed.

        Raises:
            RequestError: see `models`.
        """
        if self.conv_mode is not None:
            return Template(self.conv_mode)
        if not self._models:
            await self.models()
        return Template(self._stated.get(model, CONV_MODE))

    async def models(self) -> list[str]:
        """Lists the names of the models that workers serve.

        Raises:
            RequestError: the controller cannot be reached, or refuses.
        """
        if self.reload or not self._models:
            async with self._client() as client:
                if self.reload:
                    await check(await client.post("/refresh_all_workers"))
                reply = await client.post("/list_models")
                await check(reply)
                content = reply.json()
            names = content.get("models") if isinstance(content, Mapping) else None
            self._models = sorted(str(name) for name in names) if isinstance(names, list) else []
            stated = content.get("conv_modes") if isinstance(content, Mapping) else None
            pairs = stated.items() if isinstance(stated, Mapping) else ()
            self._stated = {name: mode for name, mode in pairs if isinstance(mode, str) and mode in conv_templates}
        return list(self._models)

    def prepare(self, picture: Image.Image, options: QLIPOptions) -> PreparedImage:
        """See `Backend`. CLIP's picture is padded to a square, as in LLaVA v1.5."""
        if options.enabled is False:
            config = SimpleNamespace(image_aspect_ratio="pad")
            return prepare_pixels(picture, self.clip_processor, config, self.native_tokens, CLIP_VIEW)
        settings = QLIPConfig(**options.changes())
        return prepare_leaves(picture, ImageCutter(PATCH_SIZE, self.native_size), settings)

    async def conversation(self, turns: Sequence[Turn], model: str) -> Conversation:
        """See `Backend`; asks for the models if they have not been listed."""
        return build_conversation(await self.template(model), turns)[0]

    def explain(self, query: Query, answer: str) -> Explanation:
        """Raises ValueError: workers answer, and explain nothing."""
        raise ValueError("a controller's workers cannot explain answers; start the page with its own model")

    async def ask(self, query: Query) -> AsyncGenerator[AnswerPiece, None]:
        """See `Backend`; without a chosen model the first one answers.

        Raises:
            RequestError: there is no worker, or the worker reports an error.
        """
        model = query.model or next(iter(await self.models()), "")  # a page that was opened before it was served
        if not model:
            raise RequestError(503, "no_worker", "no worker serves a model at present")
        conversation, images = build_conversation(await self.template(model), query.turns)
        prompt = conversation.get_prompt()
        request = {
            "model": model,
            "prompt": prompt,
            "temperature": query.sampling.temperature,
            "top_p": query.sampling.top_p or 1.0,
            "max_new_tokens": query.sampling.max_new_tokens,
            "stop": next(iter(separators(conversation)), None),
            "images": await asyncio.to_thread(encode_pictures, images),
            "qlip": {name: value for name, value in asdict(query.qlip).items() if value is not None},
        }
        shown = len(prompt)
        async with self._client() as client, client.stream("POST", protocol.ANSWERS, json=request) as reply:
            await self._check_answer(reply)
            yield AnswerPiece()  # the request is accepted
            async for frame in read_stream(reply.aiter_bytes()):
                message = read_frame(frame)
                reason = message.get("finish_reason")  # our workers' last frame has it
                yield AnswerPiece(
                    message["text"][shown:],
                    read_visual_tokens(message),
                    read_first_pass(message),
                    reason if isinstance(reason, str) else None,
                )
                shown = max(shown, len(message["text"]))

    async def _check_answer(self, reply: httpx.Response) -> None:
        """Checks as `check` does, and forgets the models once one of them is no longer served."""
        try:
            await check(reply)
        except RequestError as error:
            if error.kind == "model_not_found":
                self._models, self._stated = [], {}
            raise

    @asynccontextmanager
    async def _client(self) -> AsyncIterator[httpx.AsyncClient]:
        """Connects to the controller; failures become RequestErrors with our own messages."""
        timeout = httpx.Timeout(SILENCE, connect=CONNECT)
        try:
            async with httpx.AsyncClient(
                base_url=self.url, verify=tls_context(), timeout=timeout, headers=self.headers, trust_env=False
            ) as client:
                yield client
        except httpx.TimeoutException:
            raise RequestError(504, "unreachable", "the controller did not answer in time") from None
        except (httpx.HTTPError, httpx.InvalidURL, json.JSONDecodeError) as error:
            logger.warning("the connection to the controller failed (%s)", type(error).__name__)
            raise RequestError(502, "unreachable", "the model's server cannot be reached") from None


async def read_stream(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Yields the frames of a stream.

    Raises:
        RequestError: the stream is not in LLaVA's protocol, or breaks off.
    """
    try:
        async for frame in frames.read_frames(chunks, MAX_FRAME):
            yield frame
    except ValueError:
        raise protocol_error() from None
    except (httpx.NetworkError, httpx.ProtocolError) as error:
        logger.warning("the controller's answer broke off (%s)", type(error).__name__)
        raise RequestError(502, "broken_off", "the connection to the model's server broke") from None


def read_frame(frame: bytes) -> dict[str, Any]:
    """Parses a frame; its `text` is the prompt and the answer so far.

    Raises:
        RequestError: the frame reports an error, or is not in LLaVA's protocol.
    """
    try:
        code = ErrorCode(protocol.parsed(frames.Frame, frame).error_code)
    except ValueError:
        raise protocol_error() from None
    message = json.loads(frame)
    if code:
        raise reported_error(message, KINDS[code])
    return message


def read_visual_tokens(message: Mapping[str, Any]) -> int | None:
    """Reads the number of visual tokens from a frame; our workers report it in the last one."""
    try:
        count = int(message["usage"]["prompt_tokens_details"]["image_tokens"])
        return count if count >= 0 else None
    except (LookupError, TypeError, ValueError, OverflowError):
        return None


def read_first_pass(message: Mapping[str, Any]) -> FirstPass | None:
    """Reads the cost of the first pass from a frame, as `read_visual_tokens` does."""
    try:
        usage = message["usage"]
        return FirstPass.of(int(usage["qlip"]["first_pass_tokens"]), float(usage["seconds"]["first_pass"]))
    except (LookupError, TypeError, ValueError, OverflowError):
        return None


def protocol_error() -> RequestError:
    """Makes the error of a reply that is not in LLaVA's protocol."""
    return RequestError(502, "bad_answer", "the worker's answer is not LLaVA's protocol")


async def check(reply: httpx.Response) -> None:
    """Raises RequestError for a refused request, with the server's reason if it gives one."""
    if reply.is_success:
        return
    body = (await reply.aread()).rstrip(frames.END)
    try:
        failure = reported_error(json.loads(body), "refused")
    except (ValueError, LookupError, TypeError):
        failure = RequestError(502, "refused", f"the controller answered {reply.status_code}")
    raise failure


def reported_error(message: Any, kind: str, limit: int = 300) -> RequestError:
    """Makes the error that a reply reports: its text in one line of bounded length, and its own kind if any."""
    line = " ".join(str(message["text"]).split())
    text = (line if len(line) <= limit else line[:limit] + "…").rstrip(".")
    error = message.get("error")
    return RequestError(502, str(error.get("code") or kind) if isinstance(error, Mapping) else kind, text)
