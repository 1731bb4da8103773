"""One sample of a training file: LLaVA's JSON, checked.

It is {"id", optional "image": path or list of paths, "conversations": [{"from", "value"}, ...]}, where "from" is
"human" or "gpt" and "value" is text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.text import check_encodable

SPEAKERS = ("human", "gpt")
"""Values of "from": who asks, and who answers."""

UNREAD = ("video", "videos", "images", "audio")
"""Fields of other projects' samples: to leave out what they name would teach answers about what is not seen."""


@dataclass(frozen=True)
class Sample:
    """One sample that can be trained on."""

    images: tuple[str, ...]
    """Paths, as the file has them."""
    turns: tuple[Mapping[str, str], ...]
    """{"from", "value"}: question, answer, question, answer, ..."""


def parse_sample(value: Any) -> Sample:
    """Checks a sample. A first answer without a question is dropped, as LLaVA does.

    Raises:
        ValueError: it cannot be used; names the field.
    """
    images, first = check_sample(value)
    turns = value["conversations"][first:]
    return Sample(images, tuple({"from": turn["from"], "value": turn["value"]} for turn in turns))


def check_sample(value: Any) -> tuple[tuple[str, ...], int]:
    """Checks a sample; finds its images, and the number of its first question."""
    if not isinstance(value, dict):
        raise ValueError(f"it is {_show(value)}; it must be an object with conversations")
    if "conversations" not in value:
        other = next((name for name in ("messages", "conversation", "text") if name in value), None)
        hint = f", not {other!r}" if other else ""
        raise ValueError(f'conversations is missing; it must be a list of {{"from", "value"}}{hint}')
    images = _parse_images(value.get("image"))
    if other := next((name for name in UNREAD if value.get(name)), None):
        raise ValueError(f"{other} is given, which training does not read; allowed is image, a path or a list of paths")
    turns = value["conversations"]
    if not isinstance(turns, list):
        raise ValueError(f'conversations is {_show(turns)}; it must be a list of {{"from", "value"}}')
    for i, turn in enumerate(turns):
        if not _is_plainly_sound(turn):
            _check_turn(turn, f"conversations[{i}]")
    first = 1 if turns and turns[0]["from"] == "gpt" else 0
    _check_order(turns, first)
    _check_tags(turns[first:], images, first)
    return images, first


def count_words(value: Mapping[str, Any]) -> int:
    """Counts the words of a sample's turns, a dropped first one included, as LLaVA does; at least 1."""
    return max(1, len(" ".join([turn["value"] for turn in value["conversations"]]).split()))


def _parse_images(value: Any) -> tuple[str, ...]:
    if value is None or value == "" or value == []:
        return ()
    paths, names = (
        (value, [f"image[{i}]" for i in range(len(value))]) if isinstance(value, list) else ([value], ["image"])
    )
    for path, name in zip(paths, names, strict=True):
        if not isinstance(path, str) or not path:
            raise ValueError(f"{name} is {_show(path)}; allowed are a path, a list of paths, and null")
        check_encodable(name, path)
        if "\0" in path:
            raise ValueError(f"{name} is {path!r}; a path has no null character")
    return tuple(paths)


def _is_plainly_sound(turn: Any) -> bool:
    """Passes sound turns in less time than `_check_turn`; a file has millions."""
    try:
        text = turn["value"]
        return turn["from"] in SPEAKERS and (text.isascii() or text.encode("utf-8") is not None)
    except (AttributeError, KeyError, TypeError, UnicodeEncodeError):
        return False


def _check_turn(turn: Any, name: str) -> None:
    if not isinstance(turn, dict):
        raise ValueError(f'{name} is {_show(turn)}; it must be {{"from", "value"}}')
    for field in ("from", "value"):
        if field not in turn:
            raise ValueError(f"{name}.{field} is missing")
    if turn["from"] not in SPEAKERS:
        raise ValueError(f"{name}.from is {_show(turn['from'])}; allowed are 'human' and 'gpt'")
    if not isinstance(turn["value"], str):
        raise ValueError(f"{name}.value is {_show(turn['value'])}; it must be text")
    check_encodable(f"{name}.value", turn["value"])


def _check_order(turns: Sequence[Mapping[str, str]], first: int) -> None:
    """Checks that questions and answers alternate after the first `first` turns, and that an answer comes last."""
    if len(turns) == first:
        raise ValueError(
            f"conversations holds {'an answer only' if first else 'nothing'}; it must begin with a question"
        )
    for i, turn in enumerate(turns[first:]):
        if turn["from"] != (wanted := SPEAKERS[i % 2]):
            raise ValueError(
                f"conversations[{first + i}].from is {turn['from']!r}, like the turn before; it must be {wanted!r}:"
                " questions and answers alternate"
            )
    if turns[-1]["from"] != "gpt":
        raise ValueError(f"conversations[{len(turns) - 1}] is a question without an answer; add one from 'gpt'")


def _check_tags(turns: Sequence[Mapping[str, str]], images: Sequence[str], first: int) -> None:
    """Checks that every image has its `<image>` in a question.

    Several tags in the question of a single image are one, as for LLaVA. In a sample without images `<image>` is text,
    except where LLaVA's samples have the tag: at the start or end of a question.
    """
    tag = DEFAULT_IMAGE_TOKEN
    if not images:
        for i, turn in enumerate(turns[::2]):
            text = turn["value"].strip()
            if text.startswith(tag) or text.endswith(tag):
                raise ValueError(f"conversations[{first + 2 * i}].value has {tag}, but the sample has no image")
        return
    for i, turn in enumerate(turns[1::2]):
        if tag in turn["value"]:
            raise ValueError(f"conversations[{first + 2 * i + 1}].value has {tag}; only questions can hold an image")
    counts = {first + 2 * i: turn["value"].count(tag) for i, turn in enumerate(turns[::2]) if tag in turn["value"]}
    if not counts:
        raise ValueError(f"image is {_show(list(images))}, but no question holds {tag}; write it where the image goes")
    if len(images) == 1 and len(counts) > 1:
        places = " and ".join(f"conversations[{i}]" for i in counts)
        raise ValueError(f"{places} hold {tag}, but image is one path; write the tag once, or a path for each")
    if len(images) > 1 and sum(counts.values()) != len(images):
        raise ValueError(f"the questions hold {sum(counts.values())} {tag}, but image has {len(images)} paths")


def _show(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
