"""Times the engine under 1, 8 and 32 clients against transformers' `generate`, one request at a time.

A client sends its next request as soon as the last one is answered. Every request has another picture, opened already,
of the same number of visual tokens; the longest answers are of three lengths in turn. Greedy. The model says words
alone (`speak_words`), so that no answer ends early and each token has a text.
"""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

from llava.mm_utils import tokenizer_image_token
from llava.serve.engine import ChatEngine
from llava.serve.engine.detokenize import until_stop
from llava.serve.engine.params import Sampling
from llava.serve.engine.prompting import separators
from scripts.bench.gpu.models import build_engine, filled, picture
from scripts.bench.gpu.parts import Row, report_each
from scripts.bench.gpu.timing import median_ratio
from scripts.percentiles import percentile

TOKENS = 576
SIZE = 672
LENGTHS = (24, 48, 72)
CLIENTS = (1, 8, 32)
REQUESTS = {1: 3, 8: 16, 32: 64}
"""Requests of a round by number of clients."""
PLAIN_REQUESTS = 3
QUESTION = "What is in the picture?"


@dataclass(frozen=True)
class Request:
    """One question about a picture."""

    image: Image.Image
    length: int
    """Longest answer, in tokens."""


@dataclass(frozen=True)
class Round:
    """What one way measured in one turn."""

    tokens_per_second: float
    first_texts: list[float]
    """Seconds from sending each request to the first piece of its answer; empty for `generate`."""
    texts: dict[int, str]
    """Answers by number of the request."""


def make_requests(count: int) -> list[Request]:
    """Makes requests whose pictures differ."""
    return [Request(picture(SIZE, number), LENGTHS[number % len(LENGTHS)]) for number in range(count)]


def run_plain(engine: ChatEngine, requests: Sequence[Request]) -> Round:
    """Answers as one would with the model alone: prepare a picture, generate, next."""
    stops, tokens, texts = separators(engine.new_conversation()), 0, {}
    start = time.perf_counter()
    for number, request in enumerate(requests):
        prompt = engine.question(QUESTION, 1).get_prompt()
        ids = torch.tensor([tokenizer_image_token(prompt, engine.tokenizer)], device=engine.model.device)
        pixels = engine.prepare_images([request.image])
        options: dict[str, Any] = {"do_sample": False, "max_new_tokens": request.length, "use_cache": True}
        said = engine.model.generate(ids, images=pixels, pad_token_id=engine.padding_id, **options)
        tokens += said.shape[1]
        text = engine.tokenizer.batch_decode(said, skip_special_tokens=True)[0]
        texts[number] = "".join(until_stop([text], stops)).strip()
    return Round(tokens / (time.perf_counter() - start), [], texts)


def run_clients(engine: ChatEngine, requests: Sequence[Request], clients: int) -> Round:
    """Lets a number of clients work through the requests, each in a thread.

    Raises:
        RuntimeError: a request failed.
    """
    waiting, lock = iter(enumerate(requests)), threading.Lock()
    tokens, firsts, texts, errors = [], [], {}, []

    def ask(number: int, request: Request) -> None:
        start, first, pieces = time.perf_counter(), None, []
        sampling = Sampling(temperature=0.0, max_new_tokens=request.length)
        answer = engine.submit(engine.question(QUESTION, 1), [request.image], sampling)
        for piece in answer:
            first = first or time.perf_counter()
            pieces.append(piece)
        firsts.append((first or time.perf_counter()) - start)
        tokens.append(answer.usage.generated_tokens)
        texts[number] = "".join(pieces).strip()

    def one_client() -> None:
        while not errors:
            with lock:
                item = next(waiting, None)
            if item is None:
                return
            try:
                ask(*item)
            except Exception as error:
                errors.append(error)

    threads = [threading.Thread(target=one_client) for _ in range(clients)]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - start
    if errors:
        raise RuntimeError(f"a request failed: {errors[0]}") from errors[0]
    return Round(sum(tokens) / seconds, firsts, texts)


def summarise(clients: int, rounds: Sequence[Round], plain: Sequence[Round]) -> Row:
    """Computes one number of clients' medians, and its ratio to `generate` in the same turns."""
    speeds, alone = [each.tokens_per_second for each in rounds], [each.tokens_per_second for each in plain]
    same = [
        each.texts[number] == one.texts[number] for each, one in zip(rounds, plain, strict=True) for number in one.texts
    ]
    return {
        "clients": clients,
        "requests": REQUESTS[clients],
        "turns": len(rounds),
        "tokens_per_second": statistics.median(speeds),
        "plain_tokens_per_second": statistics.median(alone),
        "ratio": median_ratio(speeds, alone),
        "first_text_p50_s": statistics.median(percentile(each.first_texts, 0.50) for each in rounds),
        "first_text_p95_s": statistics.median(percentile(each.first_texts, 0.95) for each in rounds),
        "same_answers": sum(same) / len(same),
    }


@torch.inference_mode()
def run(model: str, device: str, turns: int) -> int:
    """Measures `generate` and all numbers of clients in turns; reports the rows after each; returns the failed ones."""
    engine = build_engine(model, device, filled(TOKENS))
    requests = make_requests(max(REQUESTS.values()))
    plain: list[Round] = []
    found: dict[int, list[Round]] = {clients: [] for clients in CLIENTS}
    failed: dict[int, Exception] = {}
    run_plain(engine, [Request(requests[0].image, 8)])
    run_clients(engine, [Request(each.image, 8) for each in requests[:32]], 32)

    def row(clients: int) -> Row:
        if clients in failed:
            raise failed[clients]
        return summarise(clients, found[clients], plain)

    for _ in range(turns):
        plain.append(run_plain(engine, requests[:PLAIN_REQUESTS]))
        for clients in CLIENTS:
            try:
                if clients not in failed:
                    found[clients].append(run_clients(engine, requests[: REQUESTS[clients]], clients))
            except Exception as error:  # the other numbers are measured
                failed[clients] = error
        count = report_each([(f"clients: {clients}", lambda clients=clients: row(clients)) for clients in CLIENTS])
    engine.close()
    return count
