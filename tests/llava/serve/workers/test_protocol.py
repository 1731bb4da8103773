"""LLaVA's wire protocol: its defaults, its frames however they are cut, and complaints that name the field."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llava.serve.engine.params import Sampling
from llava.serve.http.failures import Failure
from llava.serve.workers.frames import ErrorCode, FrameSplitter, error_reply, frame, read_frames, split_frames
from llava.serve.workers.protocol import GenerateRequest, HeartBeat, RegisterRequest, parsed


def sampling(**fields: Any) -> Sampling:
    return parsed(GenerateRequest, json.dumps({"prompt": "Hi", **fields}).encode()).sampling()


# Requests


def test_what_a_request_leaves_out_is_as_in_llava() -> None:
    assert sampling() == Sampling(temperature=1.0, top_p=1.0, max_new_tokens=256)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"temperature": 0.001}, {"temperature": 0.0}),
        ({"temperature": 0.0011}, {"temperature": 0.0011}),
        ({"temperature": "0.2"}, {"temperature": 0.2}),
        ({"top_p": 0}, {"temperature": 0.0, "top_p": None}),
        ({"max_new_tokens": 1536}, {"max_new_tokens": 1024}),
        ({"max_new_tokens": "7"}, {"max_new_tokens": 7}),
        ({"stop": None}, {"stop": ()}),
        ({"stop": "</s>"}, {"stop": ("</s>",)}),
        ({"stop": ["</s>", "###"]}, {"stop": ("</s>", "###")}),
        ({"seed": 3}, {"seed": 3}),
        ({"some_later_field": [1]}, {}),
    ],
)
def test_fields_mean_what_they_mean_in_llava(fields: dict[str, Any], expected: dict[str, Any]) -> None:
    assert sampling(**fields) == Sampling(**{"temperature": 1.0, "top_p": 1.0, "max_new_tokens": 256, **expected})


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        (b"", "Invalid JSON"),
        (b"[]", "should be an object"),
        (b"\xff", "Invalid JSON"),
        (b"{}", "prompt: Field required"),
        (b'{"prompt": 1}', "prompt: .*string"),
        (b'{"prompt": "\\ud800"}', "Invalid JSON"),
        (b'{"prompt": "", "images": "abc"}', "images: .*array"),
        (b'{"prompt": "", "images": [1]}', "images.0: .*string"),
        (b'{"prompt": "", "stop": {}}', "stop"),
        (b'{"prompt": "", "qlip": {"alhpa": 1}}', "qlip.alhpa"),
        (b'{"prompt": "", "qlip": {"alpha": "much"}}', "qlip.alpha"),
        (b'{"prompt": "", "temperature": "hot"}', "temperature: .*number"),
        (b"[" * 100_000, "Invalid JSON|recursion"),
    ],
)
def test_a_complaint_names_the_field(body: bytes, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        parsed(GenerateRequest, body)


def test_a_complaint_does_not_repeat_what_a_field_held() -> None:
    with pytest.raises(ValueError) as caught:
        parsed(GenerateRequest, json.dumps({"prompt": ["s3cret"], "images": "s3cret"}).encode())
    assert "s3cret" not in str(caught.value)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("field", ["images", "stop"])
def test_of_a_list_of_wrong_values_the_first_one_is_judged(field: str) -> None:
    """An error each, of a million, would cost gigabytes."""
    with pytest.raises(ValueError, match=f"{field}.*0: Input should be a valid string") as caught:
        parsed(GenerateRequest, json.dumps({"prompt": "Hi", field: [0] * 9}).encode())
    assert ".1: " not in str(caught.value)


def test_of_a_worker_with_wrong_names_the_first_one_is_judged() -> None:
    status = {"model_names": [0] * 9, "speed": 1, "queue_length": 0}
    with pytest.raises(ValueError, match=r"model_names\.0: ") as caught:
        parsed(RegisterRequest, json.dumps({"worker_name": "http://a:1", "worker_status": status}).encode())
    assert ".1: " not in str(caught.value)


def test_pictures_are_counted_before_anyone_looks_at_them() -> None:
    with pytest.raises(ValueError, match="images: .*at most 1000"):
        sampling(images=["a"] * 1001)


@pytest.mark.parametrize("stop", [["x"] * 17, ["x"] * 200_000, "x" * 1001, ["###", "x" * 1001]])
def test_stop_texts_are_few_and_short(stop: Any) -> None:
    texts = [stop] if isinstance(stop, str) else stop
    found = f"{len(texts):,} texts, the longest of {max(map(len, texts)):,} characters"
    with pytest.raises(ValueError, match=f"stop: .*{found}; at most 16 of at most 1,000 characters each"):
        sampling(stop=stop)


def test_as_many_stop_texts_as_allowed_are_taken() -> None:
    texts = ["x" * 1000] * 16
    assert sampling(stop=texts).stop == tuple(texts)


@pytest.mark.parametrize("field", ["max_new_tokens", "temperature", "top_p"])
def test_impossible_settings_are_refused(field: str) -> None:
    with pytest.raises(ValueError, match=f"{field} must be .*, got -1"):
        sampling(**{field: -1})


@pytest.mark.parametrize("queue", [-1, None, "many"])
def test_a_queue_has_a_length(queue: Any) -> None:
    with pytest.raises(ValueError, match="queue_length"):
        parsed(HeartBeat, json.dumps({"worker_name": "http://a:1", "queue_length": queue}).encode())


@pytest.mark.parametrize("speed", ["NaN", "Infinity", "-1"])
def test_a_speed_is_a_number(speed: str) -> None:
    status = f'{{"model_names": [], "queue_length": 0, "speed": {speed}}}'
    with pytest.raises(ValueError, match="speed"):
        parsed(RegisterRequest, f'{{"worker_name": "http://a:1", "worker_status": {status}}}'.encode())


# Frames


@settings(max_examples=50)
@given(texts=st.lists(st.text()), sizes=st.lists(st.integers(1, 40), min_size=1, max_size=5), closed=st.booleans())
def test_frames_come_out_whole_however_they_are_cut(texts: list[str], sizes: list[int], closed: bool) -> None:
    data = b"".join(frame(text) for text in texts)
    data = data if closed else data.removesuffix(b"\0")
    pieces = []
    while data:
        sizes = [*sizes[1:], sizes[0]]
        pieces.append(data[: sizes[0]])
        data = data[sizes[0] :]

    async def read() -> list[bytes]:
        async def received() -> AsyncIterator[bytes]:
            for piece in pieces:
                yield piece

        return [one async for one in read_frames(received())]

    found = list(split_frames(pieces))
    assert found == asyncio.run(read())
    assert [json.loads(one) for one in found] == [{"text": text, "error_code": 0} for text in texts]


def test_text_with_a_zero_byte_stays_in_its_frame() -> None:
    assert frame("a\0b").count(b"\0") == 1
    assert json.loads(frame("a\0b")[:-1])["text"] == "a\0b"


def test_a_frame_without_end_is_given_up() -> None:
    splitter = FrameSplitter(max_frame=10)
    splitter.push(b"1234567890")
    with pytest.raises(ValueError, match="longer than 10 bytes"):
        splitter.push(b"1")


def test_so_is_a_long_one_that_ends_with_its_bytes() -> None:
    splitter = FrameSplitter(max_frame=10)
    assert splitter.push(b"12345\00012") == [b"12345"]
    assert splitter.push(b"345\0") == [b"12345"]
    with pytest.raises(ValueError, match="longer than 10 bytes"):
        splitter.push(b"12345678901\0")


def test_a_refusal_speaks_by_status_and_by_frame() -> None:
    reply = error_reply(Failure(429, "overloaded", "too many wait", 7), ErrorCode.WORKER)
    assert (reply.status_code, reply.headers["retry-after"]) == (429, "7")
    assert bytes(reply.body).endswith(b"\0")
    told = json.loads(bytes(reply.body)[:-1])
    assert (told["text"], told["error_code"], told["error"]["code"]) == ("too many wait", 1, "overloaded")
