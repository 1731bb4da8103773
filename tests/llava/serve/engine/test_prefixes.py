"""A prompt that begins as an earlier one did is answered as without it, and computes what is new alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from PIL import Image

from llava.serve.engine import ChatEngine
from llava.serve.engine.answer_stream import AnswerStream
from llava.serve.engine.errors import GenerationError
from llava.serve.engine.params import EngineLimits, QLIPOptions, Sampling
from llava.serve.engine.prefixes import PrefixCache, PromptKey, prompt_key
from llava.serve.engine.prompting import Turn, build_conversation
from qlip.language_positions import ImageSpan
from tests.llava.serve.engine.engines import GREEDY, NewEngine, NotePasses
from tests.llava.serve.openai.serving import CHAT, api, becomes_idle, body, user

ASKED = ("What is in the picture?", "How many shapes are there?", "Is there a red ring?", "What else?")
SHORT = Sampling(0, max_new_tokens=5)
SEEDED = Sampling(1.3, seed=4, max_new_tokens=6)


def ask(engine: ChatEngine, turns: list[Turn], sampling: Sampling = GREEDY, **options: Any) -> AnswerStream:
    conversation, images = build_conversation(engine, turns)
    answer = engine.submit(conversation, images, sampling, **options)
    answer.text = "".join(answer)  # type: ignore[attr-defined]
    return answer


def talk(
    engine: ChatEngine, pictures: list[Image.Image], sampling: Sampling, options: list[dict[str, Any]]
) -> list[AnswerStream]:
    """A conversation that begins with some pictures, a turn for each of the options."""
    turns: list[Turn] = []
    answers = []
    for i, given in enumerate(options):
        turns.append(Turn("user", ASKED[i % len(ASKED)], tuple(pictures) if i == 0 else ()))
        answers.append(ask(engine, turns, sampling, **given))
        turns.append(Turn("assistant", answers[-1].text.strip()))  # type: ignore[attr-defined]
    return answers


def texts(answers: list[AnswerStream]) -> list[str]:
    return [answer.text for answer in answers]  # type: ignore[attr-defined]


OPTIONS: dict[str, list[dict[str, Any]]] = {
    "the same": [{}, {}, {}],
    "changed": [{}, {"qlip": QLIPOptions(max_tokens=70)}, {}, {"qlip": QLIPOptions(enabled=False)}],
    "question": [{"qlip": QLIPOptions(budget="question")}] * 2,
    "question, changed": [
        {"qlip": QLIPOptions(budget=budget)} for budget in ("score", "question", "score", "question")
    ],
}


@pytest.mark.parametrize(
    ("kind", "count", "sampling"),
    [
        ("the same", 2, SHORT),
        ("changed", 1, SEEDED),
        ("question", 1, SHORT),
        ("question, changed", 1, SEEDED),
    ],
)
def test_a_conversation_is_as_without_reuse(
    new_engine: NewEngine, pictures: list[Image.Image], kind: str, count: int, sampling: Sampling
) -> None:
    expected = talk(new_engine(max_prefix_mib=0), pictures[:count], sampling, OPTIONS[kind])
    found = talk(new_engine(), pictures[:count], sampling, OPTIONS[kind])
    assert texts(found) == texts(expected)
    assert {answer.usage.cached_tokens for answer in expected} == {0}
    reused = [answer.usage.cached_tokens >= answer.usage.visual_tokens for answer in found]
    assert reused == {"the same": [False, True, True], "question": [False, False]}.get(
        kind, [False, False, True, False]
    )


def test_a_second_question_encodes_nothing_and_runs_what_is_new(
    new_engine: NewEngine, pictures: list[Image.Image], passes: NotePasses, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, encoded = new_engine(), list[int]()
    encode = engine.vision.encode
    monkeypatch.setattr(engine.vision, "encode", lambda views: (encoded.append(len(views)), encode(views))[1])
    noted = passes(engine)
    _, answer = talk(engine, pictures[:1], GREEDY, [{}, {}])
    assert encoded == [1, 0]
    usage = answer.usage
    assert noted[-usage.generated_tokens] == (1, usage.prompt_tokens - usage.cached_tokens)
    question = len(engine.tokenizer(f"USER: {ASKED[1]} ASSISTANT:", add_special_tokens=False).input_ids)
    assert usage.prompt_tokens - usage.cached_tokens <= question + 3  # the separator, and what is tokenized otherwise


def test_an_edited_history_and_another_picture_are_not_taken_for_the_same(
    new_engine: NewEngine, pictures: list[Image.Image]
) -> None:
    def history(picture: Image.Image, said: str) -> list[Turn]:
        return [Turn("user", ASKED[0], (picture,)), Turn("assistant", said), Turn("user", ASKED[1])]

    altered = pictures[0].copy()
    altered.paste((255, 0, 0), (200, 200, 260, 260))
    asked = [
        (pictures[0], "a red ring"),
        (pictures[0], "a blue cross"),
        (pictures[1], "a red ring"),
        (altered, "a red"),
    ]
    asked += asked[:1]
    engines = [new_engine(), new_engine(max_prefix_mib=0)]
    found, expected = ([ask(engine, history(*each), SEEDED) for each in asked] for engine in engines)
    assert texts(found) == texts(expected)
    seen = [answer.usage.cached_tokens >= answer.usage.visual_tokens for answer in found]
    assert seen == [False, True, False, False, True]


def test_memory_that_runs_out_is_taken_from_earlier_prompts_first(
    new_engine: NewEngine, pictures: list[Image.Image], passes: NotePasses
) -> None:
    engine = new_engine()
    (first,) = talk(engine, pictures[:1], GREEDY, [{}])
    assert becomes_idle(engine) and len(engine.prefixes) == 1

    def run_out(rows: int, tokens: int) -> None:
        if engine.prefixes.bytes:
            raise torch.OutOfMemoryError("CUDA out of memory")

    passes(engine, run_out)
    (again,) = talk(engine, pictures[:1], GREEDY, [{}])
    assert texts([again]) == texts([first])
    assert again.usage.cached_tokens == 0


@pytest.mark.parametrize("enough", [True, False])
def test_a_beam_search_that_runs_out_of_memory_is_tried_again_without_earlier_prompts(
    new_engine: NewEngine, pictures: list[Image.Image], monkeypatch: pytest.MonkeyPatch, enough: bool
) -> None:
    engine, failed = new_engine(), list[int]()
    beam = Sampling(temperature=0, num_beams=2, max_new_tokens=4)
    (expected,) = talk(engine, pictures[:1], beam, [{}])
    talk(engine, pictures[:1], GREEDY, [{}])
    assert becomes_idle(engine) and len(engine.prefixes) == 1
    generate = engine.model.generate

    def run_out(*arguments: Any, **options: Any) -> Any:
        if engine.prefixes.bytes or not enough:
            failed.append(len(engine.prefixes))
            raise torch.OutOfMemoryError("CUDA out of memory")
        return generate(*arguments, **options)

    monkeypatch.setattr(engine.model, "generate", run_out)
    if enough:
        assert texts(talk(engine, pictures[:1], beam, [{}])) == texts([expected])
        assert failed == [1]
    else:
        with pytest.raises(GenerationError, match="ran out of memory"):
            talk(engine, pictures[:1], beam, [{}])
        assert failed == [1, 0]


def test_the_api_reports_what_was_cached() -> None:
    with api(engine_limits=EngineLimits()) as (_, client):
        cached = [
            client.post(CHAT, json=body(user(question))).json()["usage"]["prompt_tokens_details"]
            for question in ASKED[:2]
        ]
    assert cached[0]["cached_tokens"] == 0
    assert cached[1]["image_tokens"] < cached[1]["cached_tokens"] < cached[1]["image_tokens"] + cached[1]["text_tokens"]


def test_a_key_depends_on_pixels_settings_and_tokens(new_engine: NewEngine, pictures: list[Image.Image]) -> None:
    vision = new_engine().vision
    settings = vision.settings()
    dot = pictures[0].copy()
    dot.putpixel((0, 0), (1, 2, 3))
    views = [vision.prepare(picture, settings) for picture in (pictures[0], pictures[0].copy(), dot, pictures[1])]
    views += [vision.prepare(pictures[0], each) for each in (None, replace(settings, llm_size_bias=0.0))]
    keys = [prompt_key([1, -200, 5], [view]) for view in views]
    assert keys[0] == keys[1] and len(set(keys)) == len(keys) - 1
    assert (keys[0][0], keys[0][2]) == (1, 5)
    waiting = vision.prepare(pictures[0], replace(settings, budget="question"))
    assert prompt_key([1, 2, -200, 5], [waiting]) == (1, 2)


# The cache


def states(tokens: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    keys = torch.arange(tokens).float()[None, :, None]
    return [(keys, -keys)]


def kept(cache: PrefixCache, key: PromptKey, spans: list[ImageSpan] | None = None, size: int = 10) -> bool:
    called = []
    cache.store(key, spans or [], size, lambda: called.append(key) or states(1000))  # type: ignore[func-returns-value]
    return bool(called)


def test_the_longest_common_start_is_found_and_an_image_counts_its_tokens() -> None:
    cache = PrefixCache(100)
    span = ImageSpan.sequential(64)
    assert kept(cache, (1, 2, b"a", 3, b"b", 4), [span, span])
    assert kept(cache, (1, 2, b"a", 9), [span])
    for key, elements, tokens, images in [
        ((1, 2, b"a", 3, b"c", 4), 4, 67, 1),
        ((1, 2, b"a", 3, b"b", 4), 5, 131, 2),  # the last token is always run
        ((1, 2, b"a", 9, 9), 4, 67, 1),
        ((1, 3), 1, 1, 0),
        ((5,), 0, 0, 0),
        ((), 0, 0, 0),
    ]:
        prefix = cache.find(key)
        assert (len(prefix.key), prefix.tokens, len(prefix.spans)) == (elements, tokens, images)
        assert prefix.states is None if tokens == 0 else prefix.states[0][0].shape[1] == tokens


def test_the_least_recently_used_are_dropped_and_continued_ones_replaced() -> None:
    cache = PrefixCache(30)
    assert all(kept(cache, (i, i)) for i in (1, 2, 3))
    cache.find((1, 1, 1))
    assert kept(cache, (4, 4)) and len(cache) == 3  # in place of 2
    assert [cache.find((i, i, i)).tokens for i in (1, 2, 3, 4)] == [2, 0, 2, 2]
    assert kept(cache, (3, 3, 3)) and len(cache) == 3 and cache.bytes == 30
    assert not kept(cache, (3, 3))  # known already
    assert not kept(cache, (5, 5), size=31) and len(cache) == 3  # too large
    assert not kept(cache, (3, 3, 3, 3), size=31) and cache.find((3, 3, 3, 3)).tokens == 3  # its start is of use
    assert cache.clear() and not cache.clear() and cache.bytes == 0


def test_a_prompt_longer_than_the_cache_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    cache = PrefixCache(2**20)
    for tokens in (1, 2):
        assert not kept(cache, (tokens,), size=3 * 2**20 - 5)
    (record,) = caplog.records
    assert "take 3 MiB, more than the 1 MiB" in record.message and "--prefix-cache-mib 3 or more" in record.message
