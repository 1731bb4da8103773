"""Turns of a dialogue, with their pictures -> a conversation in a model's prompt format. Knows no protocol."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.conversation import Conversation
from llava.serve.engine.vision import Picture


@dataclass(frozen=True)
class Turn:
    """What one side said."""

    role: Literal["system", "user", "assistant"]
    text: str
    images: tuple[Picture, ...] = ()
    """Shown with the text; LLaVA reads them before it."""


class PromptFormat(Protocol):
    """What it takes to write a prompt; a `ChatEngine` has it."""

    @property
    def image_token(self) -> str:
        """What stands for a picture."""

    def new_conversation(self) -> Conversation:
        """Returns an empty conversation."""


def build_conversation(engine: PromptFormat, turns: Sequence[Turn]) -> tuple[Conversation, list[Picture]]:
    """Returns the conversation that waits for an answer to the last turn, and its pictures in order.

    Turns of one side that follow each other are joined.

    Args:
        engine: Knows the prompt format.
        turns: A system text, if any, comes first and replaces the format's own, unless it is empty; then user and
            assistant take turns. The assistant may have had nothing to say.

    Raises:
        ValueError: no user turn at the end or at the beginning, a system turn in between, an empty turn, pictures that
            the user did not show, or text that holds the token that stands for a picture.
    """
    conversation = engine.new_conversation()
    system = [turn for turn in turns if turn.role == "system"]
    talk = _joined(turns[len(system) :])
    if list(turns[: len(system)]) != system:
        raise ValueError("a system message comes before all others")
    if not talk or talk[0].role != "user" or talk[-1].role != "user":
        raise ValueError("the first and the last message must be the user's (a system message may come before)")
    if said := "\n".join(_checked(turn) for turn in system).strip():
        conversation.system = said
    for turn in talk:
        role = conversation.roles[turn.role == "assistant"]
        text = f"{engine.image_token}\n" * len(turn.images) + _checked(turn)
        conversation.append_message(role, text or " ")  # no text at all would stand for an answer still to come
    conversation.append_message(conversation.roles[1], None)
    return conversation, [image for turn in talk for image in turn.images]


def _joined(turns: Sequence[Turn]) -> list[Turn]:
    joined: list[Turn] = []
    for turn in turns:
        if joined and joined[-1].role == turn.role:
            last = joined.pop()
            turn = Turn(turn.role, f"{last.text}\n{turn.text}".strip("\n"), last.images + turn.images)
        joined.append(turn)
    return joined


def _checked(turn: Turn) -> str:
    if DEFAULT_IMAGE_TOKEN in turn.text:
        raise ValueError(f"a message's text may not hold {DEFAULT_IMAGE_TOKEN!r}: it stands for a picture")
    if turn.images and turn.role != "user":
        raise ValueError(f"only the user may show pictures; the {turn.role}'s message has {len(turn.images)}")
    if turn.role == "user" and not turn.text.strip() and not turn.images:
        raise ValueError(f"the {turn.role}'s message is empty")
    return turn.text
