"""Errors of the engine. Imports nothing heavy."""

from __future__ import annotations


class PromptTooLongError(ValueError):
    """The prompt, its images and the longest answer exceed the model's context."""


class OverloadedError(RuntimeError):
    """The queue is full."""

    def __init__(self, waiting: int, retry_after: int) -> None:
        """
        Args:
            waiting: Number of waiting requests.
            retry_after: Seconds until the client should try again.
        """
        super().__init__(f"{waiting} requests are waiting already, the most allowed; try again in {retry_after} s")
        self.retry_after = retry_after


class EngineClosedError(RuntimeError):
    """The engine is shutting down."""

    def __init__(self) -> None:
        super().__init__("this server is shutting down and takes no more requests")


class GenerationError(RuntimeError):
    """The model failed on a request; the cause is chained."""

    def __init__(self, cause: BaseException, out_of_memory: bool = False) -> None:
        super().__init__(
            "the model ran out of memory; shorten the prompt or lower the token budget"
            if out_of_memory
            else f"the model failed ({type(cause).__name__}); the server's log says why"
        )
        self.out_of_memory = out_of_memory
        self.__cause__ = cause
        self.unredacted: BaseException = self if out_of_memory else cause
        """The error for the person who runs the program; this one's message is for remote clients."""


def ran_out_of_memory(error: BaseException | None) -> bool:
    """Whether an exception is an out-of-memory error of Python or of PyTorch, which need not be installed."""
    return (
        isinstance(error, MemoryError)
        or any(kind.__name__ == "OutOfMemoryError" for kind in type(error).__mro__)
        or (isinstance(error, RuntimeError) and "can't allocate memory" in str(error))
    )
