"""Builds a conversation in a model's prompt format from chat messages and their images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.conversation import BARE_STYLES, Conversation, SeparatorStyle
from llava.mm_utils import tokenizer_image_token
from llava.serve.engine.vision import Picture

ZERO_WIDTH_SPACE = "\u200b"


@dataclass(frozen=True)
class Turn:
    """One message of a chat."""

    role: Literal["system", "user", "assistant"]
    text: str
    images: tuple[Picture, ...] = ()
    """Images of the message; they come before its text in the prompt."""


class PromptFormat(Protocol):
    """A model's prompt format, for example a `ChatEngine`."""

    @property
    def image_token(self) -> str:
        """The text in place of an image."""

    def new_conversation(self) -> Conversation:
        """Creates an empty conversation."""


def build_conversation(engine: PromptFormat, turns: Sequence[Turn]) -> tuple[Conversation, list[Picture]]:
    """Builds the conversation that waits for an answer to the last turn, and lists its images in order.

    Consecutive turns of the same role are joined.

    Args:
        engine: Gives the prompt format.
        turns: System text, if any, comes first and replaces the format's own unless it is empty; then user and
            assistant alternate. An assistant's turn may be empty.

    Raises:
        ValueError: the first or last turn is not the user's, a system turn follows another role, a user's turn is
            empty, another role has images, or the user's or the system's text contains the image token.
    """
    conversation = engine.new_conversation()
    system = [turn for turn in turns if turn.role == "system"]
    talk = _joined(turns[len(system) :])
    if list(turns[: len(system)]) != system:
        raise ValueError("a system message comes before all others")
    if not talk or talk[0].role != "user" or talk[-1].role != "user":
        raise ValueError("the first and the last message must be the user's (a system message may come before)")
    if said := "\n".join(_checked(turn) for turn in system).strip():
        conversation.system = system_header(conversation) + said
    for turn in talk:
        role = conversation.roles[turn.role == "assistant"]
        text = f"{engine.image_token}\n" * len(turn.images) + _checked(turn)
        conversation.append_message(role, text or " ")  # an empty text would mean an answer still to come
    conversation.append_message(conversation.roles[1], None)
    return conversation, [image for turn in talk for image in turn.images]


def system_header(form: Conversation) -> str:
    """Finds the role that opens a format's system text, such as "<|im_start|>system\\n"; most formats have none."""
    if form.sep_style not in BARE_STYLES:
        return ""
    header = form.roles[0].replace("user", "system") + ("\n" if form.sep_style is SeparatorStyle.CHATML else "")
    return header if form.system.startswith(header) else ""


def find_end_tokens(tokenizer: Any, generation_config: Any, form: Conversation) -> frozenset[int]:
    """Finds the tokens that end an answer: the tokenizer's, those of generation_config.json, the format's separators.

    A separator that is a special token, as Llama 3's <|eot_id|>, never appears in the decoded text.
    """
    named = getattr(generation_config, "eos_token_id", None)
    ends = [tokenizer.eos_token_id, *(named if isinstance(named, list | tuple) else [named])]
    added = getattr(tokenizer, "added_tokens_decoder", {})
    ends += [index for index, token in added.items() if token.special and str(token) in separators(form)]
    return frozenset(index for index in ends if index is not None)


def separators(conversation: Conversation) -> tuple[str, ...]:
    """Lists the strings that end an answer in a conversation's format; some formats have none."""
    two = conversation.sep_style in (SeparatorStyle.TWO, SeparatorStyle.LLAMA_2)
    separator = conversation.sep2 if two else conversation.sep
    return (separator,) if separator else ()


def question_start(prompt: str, form: Conversation) -> int:
    """Finds where the newest question of a prompt in some format begins, its role included; 0 if it has no roles.

    Args:
        prompt: the text.
        form: its format; with the messages, if they are known, a question may hold the text of a role itself.
    """
    if form.sep_style is SeparatorStyle.LLAMA_2:
        opening = "[INST]"
    elif form.sep_style is SeparatorStyle.PLAIN:
        return 0
    else:
        opening = form.roles[0] + ("" if form.sep_style in BARE_STYLES else ":")
    waits = len(form.messages) > 1 and not form.messages[-1][1]
    newest = form.messages[-2][1] if waits else None
    end = prompt.rfind(newest) if isinstance(newest, str) else -1
    return max(0, prompt.rfind(opening, 0, end if end >= 0 else len(prompt)))


def find_question_token(prompt: str, form: Conversation, tokenizer: Any, tokens: int) -> int:
    """Finds the token, of a prompt's `tokens`, at which its newest question begins, see `question_start`."""
    before = prompt[: question_start(prompt, form)]
    return min(len(tokenizer_image_token(before, tokenizer)), tokens - 1)


def _joined(turns: Sequence[Turn]) -> list[Turn]:
    joined: list[Turn] = []
    for turn in turns:
        if joined and joined[-1].role == turn.role:
            last = joined.pop()
            turn = Turn(turn.role, f"{last.text}\n{turn.text}".strip("\n"), last.images + turn.images)
        joined.append(turn)
    return joined


def _checked(turn: Turn) -> str:
    if turn.role != "assistant" and DEFAULT_IMAGE_TOKEN in turn.text:
        raise ValueError(f"a message's text may not hold {DEFAULT_IMAGE_TOKEN!r}: it marks where a picture is")
    if turn.images and turn.role != "user":
        raise ValueError(f"only the user may show pictures; the {turn.role}'s message has {len(turn.images)}")
    if turn.role == "user" and not turn.text.strip() and not turn.images:
        raise ValueError(f"the {turn.role}'s message is empty")
    return break_image_token(turn.text) if turn.role == "assistant" else turn.text


def break_image_token(text: str) -> str:
    """Breaks the image token in an answer by a space of no width: a model that says it must not end a conversation."""
    return text.replace(DEFAULT_IMAGE_TOKEN, f"{DEFAULT_IMAGE_TOKEN[:1]}{ZERO_WIDTH_SPACE}{DEFAULT_IMAGE_TOKEN[1:]}")
