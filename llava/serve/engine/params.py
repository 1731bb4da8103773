"""Settings of requests and of the engine: sampling, QLIP options, limits. Imports nothing heavy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from numbers import Integral, Real
from typing import Any

from qlip.config import check_count

ALL_TOKENS = -1  # a `top_k` that keeps all tokens, as 0 does
MAX_LOGPROBS = 20  # alternatives listed with each token
GROWTH = 64  # tokens that answers may grow by after a request has joined before one of them has to wait

INTEGERS = {"num_beams", "max_new_tokens", "seed", "top_k", "logprobs"}  # fields of `Sampling`
MAY_BE_NONE = {"top_p", "seed", "repetition_penalty", "logprobs"}


@dataclass(frozen=True)
class Sampling:
    """How an answer's tokens are chosen, and where it ends."""

    temperature: float = 0.2
    """0 is greedy; higher is more random."""
    top_p: float | None = None
    """Share of the probability mass that is sampled from, in (0, 1]; None for all."""
    num_beams: int = 1
    """Width of the beam search; above 1 the answer is not streamed, and is the likeliest one found."""
    max_new_tokens: int = 512
    """Longest answer, in tokens."""
    stop: tuple[str, ...] = ()
    """Strings that end the answer; not part of it."""
    seed: int | None = None
    """Makes a sampled answer reproducible; None takes a new seed each time."""
    top_k: int = ALL_TOKENS
    """Number of the likeliest tokens that are sampled from; -1 or 0 for all."""
    min_p: float = 0.0
    """Least probability of a token relative to the likeliest one's, in [0, 1]; less likely tokens are not sampled."""
    repetition_penalty: float | None = None
    """Above 1 makes tokens of the prompt and of the answer so far less likely, below 1 likelier; None takes the value
    of the checkpoint's generation config, or else 1."""
    logprobs: int | None = None
    """Number of likeliest tokens listed with each chosen one; None for no log-probabilities at all."""

    def __post_init__(self) -> None:
        if isinstance(self.stop, list):
            object.__setattr__(self, "stop", tuple(self.stop))
        self._check_types()
        if not (_is_finite(self.temperature) and self.temperature >= 0):
            raise ValueError(f"temperature must be at least 0 and finite, got {self.temperature}")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be in (0, 1], got {self.top_p}")
        for name in ("num_beams", "max_new_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.seed is not None and not -(2**63) <= self.seed < 2**63:
            raise ValueError(f"seed must be a 64-bit integer, got {self.seed}")
        if self.top_k < ALL_TOKENS:
            raise ValueError(f"top_k must be a positive integer, or -1 or 0 for all tokens, got {self.top_k}")
        if not 0 <= self.min_p <= 1:
            raise ValueError(f"min_p must be in [0, 1], got {self.min_p}")
        penalty = self.repetition_penalty
        if penalty is not None and not (_is_finite(penalty) and penalty > 0):
            raise ValueError(f"repetition_penalty must be above 0 and finite, got {penalty}")
        if self.logprobs is not None and not 0 <= self.logprobs <= MAX_LOGPROBS:
            raise ValueError(f"logprobs must be in [0, {MAX_LOGPROBS}], got {self.logprobs}")
        if self.num_beams > 1 and (penalty not in (None, 1) or self.logprobs is not None):
            raise ValueError(f"num_beams must be 1 with a repetition_penalty or logprobs, got {self.num_beams}")

    def _check_types(self) -> None:
        if not isinstance(self.stop, tuple) or not all(isinstance(text, str) for text in self.stop):
            raise TypeError(f"stop is {self.stop!r}; it must be a tuple of strings, as in ('###',)")
        for name, value in vars(self).items():
            if name == "stop" or (value is None and name in MAY_BE_NONE):
                continue
            kind, words = (Integral, "an integer") if name in INTEGERS else (Real, "a number")
            if not isinstance(value, kind) or isinstance(value, bool):
                raise TypeError(f"{name} is {value!r}; it must be {words}")

    def shorten(self, most: int) -> Sampling:
        """Limits the answer to the `most` tokens that a context leaves, but never to less than one."""
        return replace(self, max_new_tokens=min(self.max_new_tokens, max(1, most)))

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is always chosen."""
        return self.temperature == 0


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer too large for a float
        return False


@dataclass(frozen=True)
class EngineLimits:
    """Bounds on the engine's batches, its queue and single requests."""

    max_batch: int = 16
    """Largest number of answers generated together; 1 turns batching off."""
    max_batch_tokens: int = 16384
    """Largest size of a batch: its rows times the tokens of the longest, prompt and answer so far. Rows are padded, so
    this is what its keys and values take. Where answers outgrow it, the newest wait. A request that is longer by itself
    runs alone. Where requests do not join a running batch, only their prompts count."""
    max_join_tokens: int = 1024
    """Largest number of tokens that joining requests may encode or run between two tokens of the running answers.
    Images and longer prompts are processed in pieces of that size. So are the first passes of questions that decide
    what is split (`budget="question"`), also where requests do not join; there a single prompt is one piece, however
    long it is."""
    max_prefix_mib: int | None = None
    """Largest size, in MiB, of the keys and values kept for prompts that begin as earlier ones did; 0 keeps none, None
    as much as some full contexts take, within a share of the free memory (`prefix_memory`)."""
    max_waiting: int = 64
    """Largest number of waiting requests; more are refused."""
    max_preparing: int = 8
    """Largest number of requests from event loops whose images are opened and prepared at the same time."""
    max_image_tokens: int = 4096
    """Largest token budget that a request may ask for."""
    max_image_size: int = 4096
    """Largest image size that a request may ask for, in pixels."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if name != "max_prefix_mib":
                check_count(name, value)
            elif value is not None:
                check_count(name, value, least=0)

    def hold(self, lengths: Sequence[int], growth: int = 0) -> bool:
        """Whether rows of these lengths, in tokens, may be in a batch until each has grown by `growth` tokens."""
        return len(lengths) <= 1 or len(lengths) * (max(lengths) + growth) <= self.max_batch_tokens


@dataclass(frozen=True)
class QLIPOptions:
    """A request's QLIP settings; None keeps the server's. Values are checked as part of the tower's settings."""

    enabled: bool | None = None
    """Whether to use the quadtree; False uses CLIP's uniform grid."""
    alpha: float | None = None
    """Split threshold, at least 0."""
    max_tokens: int | None = None
    """Largest number of visual tokens per image."""
    image_size: int | None = None
    """Shorter side, in pixels, to which an image is resized."""
    budget: str | None = None
    """What decides where tokens are spent: "score" or "question"."""

    def __post_init__(self) -> None:
        if self.enabled not in (None, True, False):
            raise TypeError(f"enabled is {self.enabled!r}; it must be True, False or None")

    def changes(self) -> dict[str, Any]:
        """Lists the quadtree settings that the request overrides."""
        return {name: value for name, value in vars(self).items() if name != "enabled" and value is not None}


SERVER_DEFAULTS = QLIPOptions()
