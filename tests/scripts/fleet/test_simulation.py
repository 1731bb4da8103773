"""Queues are as long as queueing theory says, and small traces end when a hand count says."""

from __future__ import annotations

import math
import random
from heapq import heappop, heappush
from itertools import pairwise

import pytest

from scripts.fleet.replica import Limits
from scripts.fleet.simulation import fewest_replicas, simulate, summarise
from scripts.fleet.stages import Request, StageTimes

COUNT = 5_000
ONE = Limits(slots=1, preparers=1, waiting=10**9)


def poisson(rate: float, lengths: random.Random | None, count: int = COUNT) -> list[Request]:
    """Arrivals of a Poisson process; each takes exponentially many tokens of work around 10 000, or exactly as many."""
    numbers, now, made = random.Random(1), 0.0, []
    for _ in range(count):
        now += numbers.expovariate(rate)
        work = 10_000 if lengths is None else round(lengths.expovariate(1 / 10_000))
        made.append(Request(now, work / 10_000, 0, work, 1))
    return made


SECONDS = StageTimes(prefill_per_token=1e-4)
"""A request of `poisson` takes the model 1 s on average."""


def test_the_models_mean_wait_is_that_of_m_m_1_and_m_d_1() -> None:
    load = 0.5  # services of 1 s: rho / (mu - lambda), and half of it
    exponential = summarise(simulate(poisson(load, random.Random(2)), SECONDS, 1, ONE))
    assert exponential.wait_for_model == pytest.approx(load / (1 - load), rel=0.1)
    assert exponential.model_busy == pytest.approx(load, rel=0.03)
    constant = summarise(simulate(poisson(load, None), SECONDS, 1, ONE))
    assert constant.wait_for_model == pytest.approx(load / (2 * (1 - load)), rel=0.1)


def test_every_wait_of_one_server_is_that_of_lindleys_recursion() -> None:
    requests = poisson(0.95, random.Random(2), 1000)
    (replica,) = simulate(requests, SECONDS, 1, ONE)
    wait = 0.0
    for job, (request, following) in zip(replica.done[:-1], pairwise(requests), strict=True):
        assert job.started_at - request.at == pytest.approx(wait, abs=1e-6)
        wait = max(0.0, wait + request.text / 10_000 - (following.at - request.at))


def erlang_c(servers: int, load: float) -> float:
    """Probability that a request waits in M/M/c; `load` of each server."""
    offered = servers * load
    alone = sum(offered**k / math.factorial(k) for k in range(servers))
    full = offered**servers / math.factorial(servers) / (1 - load)
    return full / (alone + full)


def test_the_preparing_threads_mean_wait_is_that_of_m_d_2() -> None:
    """By Cosmetatos' approximation of M/D/c, within 2 % of the exact values."""
    threads, load = 2, 0.6
    factor = 1 + (1 - load) * (threads - 1) * (math.sqrt(4 + 5 * threads) - 2) / (16 * threads * load)
    expected = factor / 2 * erlang_c(threads, load) / (threads * (1 - load))
    limits, times = Limits(preparers=threads, waiting=10**9), StageTimes(prepare_per_megapixel=1.0)
    found = summarise(simulate(poisson(threads * load, None), times, 1, limits))
    assert found.wait_to_prepare == pytest.approx(expected, rel=0.1)


def test_every_wait_for_one_of_four_threads_is_that_of_the_one_that_is_free_first() -> None:
    requests = poisson(4 * 0.9, random.Random(2), 1000)
    limits, times = Limits(preparers=4, waiting=10**9), StageTimes(prepare_per_megapixel=1.0)
    (replica,) = simulate(requests, times, 1, limits)
    found = {job.request.at: job.preparing_at for job in replica.done}
    free = [0.0] * 4
    for request in requests:
        start = max(request.at, heappop(free))
        assert found[request.at] == pytest.approx(start)
        heappush(free, start + request.megapixels)


TIMES = StageTimes(prefill=1.0, decode=0.25, decode_per_row=0.25)
"""1 s until the first token; a step of one answer takes 0.5 s, of two 0.75 s."""


def at(time: float, answer: int) -> Request:
    return Request(time, 0.0, 0, 0, answer)


def test_continuous_batching_by_hand() -> None:
    """A (4 tokens) comes at 0, B (2 tokens) at 1.1; neither has an image.

    A's first token at 1; its second step is under way until 1.5. Then B joins: between its images, of which there are
    none, and its prompt A has its third token, at 2. B's prompt runs until 3, where its first token is. The step of
    both ends at 3.75, and so do both answers.
    """
    (replica,) = simulate([at(0, 4), at(1.1, 2)], TIMES, 1, Limits(slots=2))
    assert [(job.first_at, job.done_at) for job in replica.done] == [(1.0, 3.75), (3.0, 3.75)]
    assert replica.model_seconds == 3.75


def test_groups_that_join_by_hand() -> None:
    """A runs alone from 0.5 on; B and C come meanwhile, D while they join.

    Images of 100 tokens take 0.25 s each, prompts of 100 tokens 0.25 s each, a step 0.1 s. Two prompts are more than
    150 tokens, so that B, C and D join one after the other, each by two pieces with a step before each. They are not
    more than 200: then B and C join together, and D after them.
    """
    times = StageTimes(encode_per_token=0.0025, prefill_per_token=0.0025, decode=0.1)
    requests = [Request(moment, 0.0, 100, 0, 50) for moment in (0.0, 0.45, 0.46, 0.8)]
    (replica,) = simulate(requests, times, 1, Limits(join_tokens=150))
    first = sorted((job.request.at, job.first_at) for job in replica.done)
    piece, step = 0.25, 0.1
    b = 0.6 + piece + step + piece
    c = b + step + piece + step + piece
    assert [moment for _, moment in first] == pytest.approx([0.5, b, c, c + step + piece + step + piece])
    (replica,) = simulate(requests, times, 1, Limits(join_tokens=200))
    first = sorted((job.request.at, job.first_at) for job in replica.done)
    together = 0.6 + 2 * piece + step + 2 * piece
    assert [moment for _, moment in first] == pytest.approx([0.5, together, together, together + 2 * (step + piece)])


def test_a_prompt_longer_than_a_piece_is_run_in_several_between_which_others_have_a_token() -> None:
    times = StageTimes(encode_per_token=0.001, prefill_per_token=0.001, decode=0.1)
    long = Request(0.0, 0.0, 2000, 500, 9)
    assert times.pieces([long], 1000) == pytest.approx([2.0, 2.5 / 3, 2.5 / 3, 2.5 / 3])  # one image is one piece
    assert times.pieces([long, long], 5000) == pytest.approx([4.0, 5.0])
    assert times.pieces([long, long], 2000) == pytest.approx([2.0, 2.0, *[5.0 / 3] * 3])


def test_answers_join_only_while_the_batch_has_room_for_their_tokens() -> None:
    """Prompts of 900 tokens, each of which may grow by 64: two are at most 2000, three are not.

    A's first token is at 1, B's at 2.2, after two steps of A. A's 17 others take until 3.9; then C joins B, with one
    step between its images, of which there are none, and its prompt.
    """
    requests = [Request(0.0, 0.0, 0, 900, 20)] * 3
    times, limits = StageTimes(prefill=1.0, decode=0.1), Limits(batch_tokens=2000)
    (replica,) = simulate(requests, times, 1, limits)
    assert [job.first_at for job in replica.done] == pytest.approx([1.0, 2.2, 5.0])
    (alone,) = simulate(requests[:1], times, 1, Limits(batch_tokens=10))[0].done
    assert alone.first_at == 1.0


def test_static_batches_by_hand() -> None:
    """A (3 tokens) runs from 0 to 2; B and C (1 and 3 tokens) come meanwhile and start together.

    Their first tokens are at 3, where B ends; C's two steps carry B's row along, 0.75 s each: 4.5.
    """
    (replica,) = simulate([at(0, 3), at(0.1, 1), at(0.2, 3)], TIMES, 1, Limits(slots=2, batching="static"))
    assert [(job.first_at, job.done_at) for job in replica.done] == [(1.0, 2.0), (3.0, 3.0), (3.0, 4.5)]


def test_a_full_queue_refuses_and_all_others_are_answered() -> None:
    fleet = simulate([at(0.0, 1)] * 2 + [at(0.1, 1)] * 8, TIMES, 2, Limits(slots=1, waiting=2), "round_robin")
    found = summarise(fleet)
    assert (found.requests, found.refused) == (6, 4)  # each replica: one with the model, two waiting, two refused


def test_a_router_that_asks_two_replicas_is_between_turns_and_the_shortest_queue() -> None:
    requests = poisson(8 * 0.85, random.Random(2), 2_000)
    waits = {
        routing: summarise(simulate(requests, SECONDS, 8, ONE, routing)).wait_for_model
        for routing in ("shortest", "two_choices", "round_robin")
    }
    assert waits["shortest"] < waits["two_choices"] < waits["round_robin"]


def test_the_most_requests_per_second_are_those_of_a_fleet_that_never_rests() -> None:
    times = StageTimes(0.1, 0.0, 0.05, 1e-4, 0.02, 1e-4, 0.03, 0.001, 1e-6)
    request = Request(0.0, 1.0, 576, 60, 100)
    most = times.most_per_second(request, 16, 8)
    found = summarise(simulate([request] * 300, times, 1, Limits(waiting=10**9)))
    assert found.model_busy > 0.98
    assert found.per_second == pytest.approx(most, rel=0.1)


def test_the_fewest_replicas() -> None:
    for fewest in (1, 2, 3, 7, 8, 100):
        assert fewest_replicas(lambda count, fewest=fewest: count >= fewest) == fewest
    assert fewest_replicas(lambda count: False, most=8) is None
