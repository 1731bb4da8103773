"""How often a page shows an answer while it grows."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncGenerator, Iterable

import pytest

from llava.serve.web.backend import AnswerPiece
from llava.serve.web.progress import AnswerProgress, pace

NEVER = 3600  # seconds of a period that no test sees the end of


async def at_once(steps: Iterable[str], failure: BaseException | None = None) -> AsyncGenerator[str, None]:
    """Steps that come without delay, and then a failure."""
    for step in steps:
        yield step
    if failure is not None:
        raise failure


def shown(steps: AsyncGenerator[str, None], period: float) -> list[str]:
    async def collect() -> list[str]:
        return [step async for step in pace(steps, period)]

    return asyncio.run(collect())


def test_of_steps_within_a_period_the_first_and_the_last_are_shown() -> None:
    assert shown(at_once("abcd"), NEVER) == ["a", "d"]


@pytest.mark.parametrize("steps", ["", "a", "ab"])
def test_few_steps_are_all_shown(steps: str) -> None:
    assert shown(at_once(steps), NEVER) == list(steps)


def test_without_a_period_every_step_is_shown() -> None:
    assert shown(at_once("abcd"), 0) == list("abcd")


def test_what_came_before_a_failure_is_shown_before_it() -> None:
    seen = []

    async def collect() -> None:
        async for step in pace(at_once("abc", ValueError("the model failed")), NEVER):
            seen.append(step)

    with pytest.raises(ValueError, match="the model failed"):
        asyncio.run(collect())
    assert seen == ["a", "c"]


def test_what_came_before_an_inner_cancellation_is_shown_before_it() -> None:
    seen = []

    async def collect() -> None:
        async for step in pace(at_once("abc", asyncio.CancelledError()), NEVER):
            seen.append(step)

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(collect())
    assert seen == ["a", "c"]


def test_a_step_that_failed_after_the_last_look_is_no_unhandled_error() -> None:
    reported = []

    async def leave() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context))
        paced = pace(at_once("a", ValueError("the model failed")), NEVER)
        assert await anext(paced) == "a"
        for _ in range(3):
            await asyncio.sleep(0)
        await paced.aclose()
        gc.collect()

    asyncio.run(leave())
    assert reported == []


def test_a_step_waits_for_its_period_and_for_no_other_step() -> None:
    async def collect() -> list[str]:
        more = asyncio.Event()

        async def two_and_then_none() -> AsyncGenerator[str, None]:
            yield "a"
            yield "b"
            await more.wait()
            yield "c"

        seen = []
        async for step in pace(two_and_then_none(), 0.01):
            seen.append(step)
            if step == "b":
                more.set()
        return seen

    assert asyncio.run(collect()) == ["a", "b", "c"]


def test_closing_ends_the_steps_while_one_is_waited_for() -> None:
    async def leave() -> list[str]:
        ended = []

        async def endless() -> AsyncGenerator[str, None]:
            try:
                yield "a"
                await asyncio.Event().wait()
            finally:
                ended.append("closed")

        paced = pace(endless(), NEVER)
        assert await anext(paced) == "a"
        await paced.aclose()
        return ended

    assert asyncio.run(leave()) == ["closed"]


def test_the_first_text_is_timed_when_it_comes_and_not_when_it_is_shown() -> None:
    async def follow() -> AnswerProgress:
        progress = AnswerProgress(tokens=64)

        async def pieces() -> AsyncGenerator[AnswerPiece, None]:
            yield AnswerPiece(visual_tokens=32)
            yield AnswerPiece("a")
            assert progress.cost.first is not None
            yield AnswerPiece(" ring", finish_reason="stop")

        times = [now.cost.total async for now in pace(progress.follow(pieces()), NEVER)]
        assert times[0] is None and times[-1] is not None
        return progress

    progress = asyncio.run(follow())
    assert (progress.text, progress.cost.tokens, progress.is_done) == ("a ring", 32, True)
