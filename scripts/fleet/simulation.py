"""Runs requests through replicas behind a router, and says where they waited."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from scripts.fleet.replica import Clock, Job, Limits, Replica
from scripts.fleet.stages import Request, StageTimes
from scripts.percentiles import percentile

Routing = Literal["two_choices", "shortest", "round_robin"]
"""Ray Serve asks two replicas drawn at random and takes the one with fewer requests: two_choices."""


@dataclass(frozen=True)
class Outcome:
    """What a simulation found; times in seconds."""

    requests: int
    refused: int
    per_second: float
    """Answers per second from the first arrival to the last answer."""
    first_p50: float
    """Time to the first token."""
    first_p95: float
    whole_p50: float
    """Time to the end of the answer."""
    whole_p95: float
    wait_to_prepare: float
    """Mean wait for a thread that prepares the image."""
    wait_for_model: float
    """Mean wait of a prepared request for the model."""
    preparing_busy: float
    """Share of the preparing threads' time."""
    model_busy: float
    """Share of the models' time."""


def simulate(
    requests: Sequence[Request],
    times: StageTimes,
    replicas: int,
    limits: Limits,
    routing: Routing = "two_choices",
    seed: int = 0,
) -> list[Replica]:
    """Runs requests to their end; returns the replicas with what they did.

    Args:
        requests: sorted by arrival.
        times: of one replica.
        replicas: how many.
        limits: of one replica.
        routing: which replica gets a request.
        seed: of the router's draws.
    """
    if replicas < 1:
        raise ValueError(f"there are {replicas} replicas; at least 1 is needed")
    clock = Clock()
    fleet = [Replica(clock, times, limits) for _ in range(replicas)]
    choose = make_router(fleet, routing, seed)
    for request in requests:
        clock.at(request.at, lambda request=request: choose().receive(request))
    clock.run()
    return fleet


def make_router(fleet: Sequence[Replica], routing: Routing, seed: int) -> Callable[[], Replica]:
    """Makes the function that chooses the next request's replica."""
    numbers, turn = random.Random(seed), iter(range(10**18))

    def choose() -> Replica:
        if routing == "round_robin":
            return fleet[next(turn) % len(fleet)]
        asked = fleet if routing == "shortest" else numbers.sample(list(fleet), min(2, len(fleet)))
        return min(asked, key=lambda replica: replica.ongoing)

    return choose


def summarise(fleet: Sequence[Replica]) -> Outcome:
    """Summarises what a fleet did.

    Raises:
        ValueError: nothing was answered.
    """
    jobs = [job for replica in fleet for job in replica.done]
    if not jobs:
        raise ValueError("no request was answered")
    seconds = max(job.done_at for job in jobs) - min(job.request.at for job in jobs)
    first = [job.first_at - job.request.at for job in jobs]
    whole = [job.done_at - job.request.at for job in jobs]
    threads = len(fleet) * fleet[0].limits.preparers
    return Outcome(
        len(jobs),
        sum(replica.refused for replica in fleet),
        len(jobs) / seconds if seconds else math.inf,
        *(percentile(first, share) for share in (0.5, 0.95)),
        *(percentile(whole, share) for share in (0.5, 0.95)),
        _mean(jobs, lambda job: job.preparing_at - job.request.at),
        _mean(jobs, lambda job: job.started_at - job.prepared_at),
        sum(replica.preparing_seconds for replica in fleet) / (threads * seconds) if seconds else 0.0,
        sum(replica.model_seconds for replica in fleet) / (len(fleet) * seconds) if seconds else 0.0,
    )


def fewest_replicas(answers_in_time: Callable[[int], bool], most: int = 4096) -> int | None:
    """Finds the fewest replicas for which a condition holds that more replicas do not break; None above `most`."""
    high = 1
    while not answers_in_time(high):
        if high >= most:
            return None
        high = min(2 * high, most)
    low = high // 2  # too few, or 0
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if answers_in_time(middle) else (middle, high)
    return high


def _mean(jobs: Sequence[Job], value: Callable[[Job], float]) -> float:
    return sum(map(value, jobs)) / len(jobs)
