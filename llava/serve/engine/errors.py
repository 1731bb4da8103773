"""What the engine raises about a request that it cannot answer."""

from __future__ import annotations


class PromptTooLong(ValueError):
    """A prompt, its pictures and the longest answer exceed the model's context."""


class Overloaded(RuntimeError):
    """Too many requests wait."""

    def __init__(self, waiting: int, retry_after: int) -> None:
        """
        Args:
            waiting: Requests that wait.
            retry_after: Seconds after which to try again.
        """
        super().__init__(f"{waiting} requests wait already, which is the most allowed; try again in {retry_after} s")
        self.retry_after = retry_after


class EngineClosed(RuntimeError):
    """The engine takes no more requests."""

    def __init__(self) -> None:
        super().__init__("this server is shutting down and takes no more requests")


class GenerationError(RuntimeError):
    """The model failed while answering; the cause is chained."""

    def __init__(self, cause: BaseException, out_of_memory: bool = False) -> None:
        super().__init__(
            "the model ran out of memory; shorten the prompt or lower the token budget"
            if out_of_memory
            else f"the model failed ({type(cause).__name__}); the server's log says why"
        )
        self.out_of_memory = out_of_memory
        self.__cause__ = cause
        self.in_full: BaseException = self if out_of_memory else cause
        """What the person who runs the program should read, where the message is for remote clients."""


def ran_out_of_memory(error: BaseException | None) -> bool:
    """Whether an exception says that memory does not suffice, Python's or that of PyTorch, which need not be there."""
    return (
        isinstance(error, MemoryError)
        or any(kind.__name__ == "OutOfMemoryError" for kind in type(error).__mro__)
        or (isinstance(error, RuntimeError) and "can't allocate memory" in str(error))
    )
