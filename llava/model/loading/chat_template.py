"""Chooses a checkpoint's prompt template, and recognises which one its own chat template (Jinja) is."""

from __future__ import annotations

import logging
import os
from functools import lru_cache
from pathlib import Path
from typing import Any

from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.conversation import conv_templates
from llava.mm_utils import get_model_name_from_path
from llava.model.loading.files import read_json

logger = logging.getLogger(__name__)

TYPES = {"llava_mistral": "mistral_instruct", "llava_mpt": "mpt", "llava_qwen": "qwen_1_5"}
"""`model_type` -> the template that its checkpoints were trained with."""

NAMES = {
    "vicuna_v1": {
        "llama-2": "llava_llama_2",
        "llama-3": "llava_llama_3",
        "llama3": "llava_llama_3",
        "v1.6-34b": "chatml_direct",
    },
    "mistral_instruct": {"bakllava": "vicuna_v1"},
}
"""Template of the type -> part of a model's name -> its template, where the configuration does not tell it."""

RECOGNISED = (
    "vicuna_v1",
    "llava_llama_2",
    "mistral_instruct",
    "llava_llama_3",
    "chatml_direct",
    "qwen_1_5",
    "mpt",
    "llava_v0",
)
"""Templates that other projects' checkpoints follow; of several that end a question alike, the first match counts."""

QUESTION = "What is it?"

FILES = ("chat_template.jinja", "chat_template.json", "processor_config.json", "tokenizer_config.json")
"""Where a processor keeps its chat template, in the order in which transformers looks; its tokenizer's comes last."""


def default_template(config: Any) -> str:
    """Finds the template of a language model's type; LLaVA v1.5's "vicuna_v1" for Llama."""
    return TYPES.get(str(getattr(config, "model_type", None)), "vicuna_v1")


def choose_template(model_path: str, config: Any) -> str:
    """Chooses the template of a checkpoint from its config.json, else from its type, else from its name.

    Args:
        model_path: folder or hub id.
        config: of the loaded model. That of a checkpoint in transformers' format names the template that its chat
            template follows.
    """
    if config.conv_mode is not None:
        return config.conv_mode
    return (template_by_name(model_path, config) if config.has_tower else None) or default_template(config)


def keep_template(model_path: str, config: Any) -> None:
    """Stores the template implied by a checkpoint's name in its configuration, before the checkpoint is renamed."""
    template = choose_template(model_path, config)
    if template != default_template(config):
        config.conv_mode = template


def template_by_name(model_path: str, config: Any) -> str | None:
    """Finds the template implied by a folder name (a link's or its target's) or hub id; None if there is none.

    Args:
        model_path: folder or hub id.
        config: of its model; names differ by the language model's type.
    """
    known = NAMES.get(default_template(config), {})
    names = [get_model_name_from_path(path).lower() for path in (model_path, os.path.realpath(model_path))]
    return next((own for name in names for part, own in known.items() if part in name), None)


def find_template(folder: Path, config: Any) -> str | None:
    """Finds the prompt template that a checkpoint's chat template follows; None if it has no chat template.

    Templates differ in the text between a question and its answer. System texts may differ: a checkpoint's chat
    template often has none, where the template that it was trained with has one.

    Args:
        folder: the checkpoint.
        config: of its model; its type decides where several templates end a question alike.

    Returns:
        A key of `conv_templates`; None, with a warning, also where no template ends a question so.

    Raises:
        ValueError: one of its files is damaged.
    """
    written = read_chat_template(folder)
    if written is None:
        return None
    try:
        return recognise(written, config)
    except LookupError as error:
        _warn(folder, str(error), default_template(config))
        return None


def recognise(chat_template: str, config: Any) -> str:
    """Finds the template of `conv_templates` that a chat template follows; see `find_template`.

    Raises:
        LookupError: it can't be rendered, or no template goes from question to answer as it does.
    """
    end = render_end(chat_template)
    if end is None:
        raise LookupError("can't be rendered")
    ends = {name: _end_of(name) for name in (default_template(config), *RECOGNISED)}
    for alike in (str, _squeeze):  # chat templates of one model differ in line breaks
        if found := next((name for name, own in ends.items() if alike(own) == alike(end)), None):
            return found
    raise LookupError(f"goes from question to answer by {end!r}, which no prompt template here does")


def read_chat_template(folder: Path) -> str | None:
    """Reads a checkpoint's chat template, as transformers' processors find it; None if there is none.

    Raises:
        ValueError: one of its files is damaged.
    """
    for file in (folder / name for name in FILES):
        if not file.is_file():
            continue
        if file.suffix == ".jinja":
            return file.read_text(encoding="utf-8")
        written = read_json(file).get("chat_template")
        if isinstance(written, list):  # several, by name
            written = {each.get("name"): each.get("template") for each in written if isinstance(each, dict)}
        if isinstance(written, dict):
            written = written.get("default")
        if isinstance(written, str):
            return written
    return None


def render_end(chat_template: str) -> str | None:
    """Renders a question about an image; returns what follows it up to the answer, or None where that fails."""
    from transformers.utils.chat_template_utils import render_jinja_template

    parts = [{"type": "image"}, {"type": "text", "text": QUESTION}]
    for content in (parts, f"{DEFAULT_IMAGE_TOKEN}\n{QUESTION}"):  # a language model's own takes text alone
        turns = [[{"role": "user", "content": content}]]
        tokens = {"bos_token": "<s>", "eos_token": "</s>"}
        try:
            texts, _ = render_jinja_template(turns, chat_template=chat_template, add_generation_prompt=True, **tokens)
        except Exception as error:  # third-party code, which may raise anything
            logger.debug("a chat template does not take %r: %s", content, error)
            continue
        before, found, end = texts[0].rpartition(QUESTION)
        if found:
            return str(end)
    return None


def is_answered_alike(template: str, other: str) -> bool:
    """Whether two templates of `conv_templates` write the same from question to answer, but for spaces and breaks."""
    return _squeeze(_end_of(template)) == _squeeze(_end_of(other))


def _end_of(name: str) -> str:
    """Finds what a template writes between a question and its answer."""
    conversation = conv_templates[name].copy()
    conversation.append_message(conversation.roles[0], f"{DEFAULT_IMAGE_TOKEN}\n{QUESTION}")
    conversation.append_message(conversation.roles[1], None)
    return conversation.get_prompt().rpartition(QUESTION)[2]


def _squeeze(text: str) -> str:
    return "".join(text.split())


@lru_cache
def _warn(folder: Path, problem: str, template: str) -> None:
    logger.warning(
        "the chat template of %s %s; type and name choose the prompt template (%r by the type), unless --conv-mode or"
        " conv_mode in config.json does. transformers' own class with qlip.attach asks as the checkpoint says",
        folder,
        problem,
        template,
    )
