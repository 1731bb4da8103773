"""A controller's register: who is alive, and who gets the next request."""

from __future__ import annotations

from collections import Counter

import pytest

from llava.serve.workers.protocol import WorkerStatus
from llava.serve.workers.registry import Registry

A, B, C = "http://a:1", "http://b:1", "http://c:1"


class Clock:
    """Time that stands still until it is moved."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def status(*models: str, speed: float = 1, queue: int = 0) -> WorkerStatus:
    return WorkerStatus(model_names=list(models or ("m",)), speed=speed, queue_length=queue)


def registry(**workers: WorkerStatus) -> Registry:
    made = Registry(seed=0)
    for name, said in workers.items():
        made.register(f"http://{name}:1", said, True)
    return made


def test_the_worker_that_is_free_first_is_chosen() -> None:
    found = registry(a=status(queue=4, speed=1), b=status(queue=6, speed=2), c=status("other"))
    assert found.choose("m") == B


def test_what_was_sent_to_a_worker_counts_until_it_is_done() -> None:
    found = registry(a=status(), b=status())
    assert [found.choose("m") for _ in range(4)] == [A, B, A, B]
    found.finish(B)
    assert found.choose("m") == B
    assert found.heart_beat(A, 0)
    assert [found.choose("m") for _ in range(2)] == [A, A]


def test_a_request_that_nobody_sees_end_is_not_counted_where_no_heartbeat_would_end_it() -> None:
    found = registry(a=status())
    found.register(B, status(), check_heart_beat=False)
    assert Counter(found.choose("m", finishes=False) for _ in range(9)) == {A: 1, B: 8}
    assert {name: worker.status.queue_length for name, worker in found.workers().items()} == {A: 1, B: 0}
    assert found.heart_beat(A, 0)
    assert found.choose("m") == A
    assert [found.choose("m") for _ in range(2)] == [B, A]  # what passes through here is counted for both


def test_a_models_template_is_what_its_workers_state_if_they_agree() -> None:
    plain, stated = status("m", "n", "o"), {"m": "v1", "n": "v1", "p": "v1"}  # it does not serve p
    found = registry(a=plain, b=plain.model_copy(update={"conv_modes": stated}))
    found.register(C, plain.model_copy(update={"conv_modes": {"m": "v1", "n": "mistral_instruct"}}), True)
    assert found.conv_modes() == found.status().conv_modes == {"m": "v1"}


def test_workers_that_are_equally_free_take_turns() -> None:
    found = Registry()
    for name in (A, B, C):
        found.register(name, status(), check_heart_beat=False)
    assert [found.choose("m", finishes=False) for _ in range(6)] == [A, B, C] * 2


def test_the_lottery_draws_fast_workers_more_often_and_idle_ones_never() -> None:
    found = registry(a=status(speed=1), b=status(speed=3), c=status(speed=0))
    found.dispatch = "lottery"
    drawn = Counter(found.choose("m") for _ in range(2000))
    assert set(drawn) == {A, B}
    assert drawn[B] / drawn[A] == pytest.approx(3, rel=0.2)


@pytest.mark.parametrize("dispatch", ["lottery", "shortest_queue"])
def test_nobody_is_chosen_who_cannot_or_must_not(dispatch: str) -> None:
    found = registry(a=status(), b=status(speed=0))
    found.dispatch = dispatch  # type: ignore[assignment]
    assert found.choose("other") is None
    assert found.choose("m", [A]) is None
    assert found.choose("m", [B]) == A


def test_a_worker_that_falls_silent_is_dropped_and_must_register_anew() -> None:
    clock = Clock()
    found = Registry(expiration=30, clock=clock)
    for name in (A, B, C):
        found.register(name, status(name), check_heart_beat=name != C)
    clock.now = 29
    assert found.heart_beat(B, 5)
    clock.now = 31
    assert list(found.workers()) == [B, C]  # C was registered by hand and sends none
    assert found.models() == [B, C]
    assert not found.heart_beat(A, 0)
    assert found.choose(A) is None
    found.register(A, status(A), True)
    assert found.choose(A) == A


def test_a_worker_that_cannot_be_reached_is_dropped_if_it_can_come_back() -> None:
    found = Registry()
    found.register(A, status(), check_heart_beat=True)
    found.register(B, status(), check_heart_beat=False)
    for name in (A, B, C):
        found.lose(name)
    assert list(found.workers()) == [B]


def test_many_workers_are_as_one() -> None:
    found = registry(a=status("x", "y", queue=2), b=status("y", "z", speed=2, queue=1))
    assert found.status() == WorkerStatus(model_names=["x", "y", "z"], speed=3, queue_length=3)


def test_a_status_is_copied() -> None:
    said = status()
    found = registry(a=said)
    found.choose("m")
    assert said.queue_length == 0
