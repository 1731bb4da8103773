"""Prompt formats: turns a conversation into the exact text that LLaVA's checkpoints were trained on.

A template is a `Conversation` without messages; copy it, append messages and get the prompt. The templates' wording and
separators are part of LLaVA's interface: a changed space changes answers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, auto
from typing import TYPE_CHECKING, Any

from llava.constants import CHAT_LONG, CHAT_SHORT, DEFAULT_IMAGE_TOKEN

if TYPE_CHECKING:
    from PIL import Image

# A message is text, text with an image and how to fit it (see `fit_for_chat`), or None: not written yet.
Message = str | tuple[str, Any, str] | None


class SeparatorStyle(Enum):
    """How turns are joined into one prompt."""

    SINGLE = auto()
    """`role: text` closed by one separator."""
    TWO = auto()
    """`role: text` closed by one separator after the user and another after the assistant."""
    MPT = auto()
    """`role` directly followed by text, closed by one separator (ChatML)."""
    PLAIN = auto()
    """Text and separators without roles."""
    LLAMA_2 = auto()
    """`[INST] ... [/INST]` with the system text inside the first instruction."""
    CHATML = auto()
    """Like `MPT`, with a line break after each role and separator, as in Qwen's own format."""


BARE_STYLES = (SeparatorStyle.MPT, SeparatorStyle.CHATML)
"""Styles whose roles have no colon."""


@dataclass
class Conversation:
    """A system text, two roles and the messages so far."""

    system: str
    """Text that opens the prompt."""
    roles: tuple[str, str]
    """Names of user and assistant, as they appear in the prompt."""
    messages: list[list[Any]]
    """Pairs of role and `Message`, in order."""
    offset: int
    """Number of leading messages that belong to the template and are not shown to a user."""
    sep_style: SeparatorStyle = SeparatorStyle.SINGLE
    """How turns are joined."""
    sep: str = "###"
    """Separator after a turn; under `TWO` and `LLAMA_2` see `sep2`."""
    sep2: str | None = None
    """Separator after the assistant's turn, where that differs."""
    version: str = "Unknown"
    """Name of the prompt format; with "mmtag" in it, images are wrapped in `<Image>` tags."""
    skip_next: bool = False
    """Makes a web demo skip the next generation."""

    def append_message(self, role: str, message: Message) -> None:
        """Adds a message; None is a placeholder for the model's answer."""
        self.messages.append([role, message])

    def copy(self) -> Conversation:
        """Copies the conversation; changing the copy's messages does not change this one's."""
        return Conversation(
            system=self.system,
            roles=self.roles,
            messages=[[role, message] for role, message in self.messages],
            offset=self.offset,
            sep_style=self.sep_style,
            sep=self.sep,
            sep2=self.sep2,
            version=self.version,
            skip_next=self.skip_next,
        )

    def get_prompt(self) -> str:
        """Builds the prompt text.

        Raises:
            ValueError: under `LLAMA_2`, if the first message is missing or not the user's.
        """
        turns = self._text_turns()
        if self.sep_style is SeparatorStyle.LLAMA_2:
            return self._llama_2_prompt(turns)

        sep2 = self.sep if self.sep2 is None else self.sep2
        if self.sep_style is SeparatorStyle.PLAIN:
            return self.system + "".join(text + (self.sep, sep2)[i % 2] for i, (_, text) in enumerate(turns) if text)

        line = "\n" if self.sep_style is SeparatorStyle.CHATML else ""
        colon, space = (line, "") if self.sep_style in BARE_STYLES else (":", " ")
        ends = (self.sep + line, sep2 if self.sep_style is SeparatorStyle.TWO else self.sep + line)
        prompt = self.system + self.sep + line
        for i, (role, text) in enumerate(turns):
            prompt += role + colon + (space + text + ends[i % 2] if text else "")
        return prompt

    def _text_turns(self) -> list[tuple[str, str | None]]:
        """Lists the messages as text; the image token of an image in the first moves to where the format wants it."""
        turns = [(role, message[0] if isinstance(message, tuple) else message) for role, message in self.messages]
        if not self.messages or not isinstance(self.messages[0][1], tuple):
            return turns
        role, text = turns[0]
        text = text.replace(DEFAULT_IMAGE_TOKEN, "").strip()
        if "mmtag" not in self.version:
            return [(role, f"{DEFAULT_IMAGE_TOKEN}\n{text}"), *turns[1:]]
        user, assistant = self.roles
        return [(user, f"<Image>{DEFAULT_IMAGE_TOKEN}</Image>"), (assistant, "Received."), (role, text), *turns[1:]]

    def _llama_2_prompt(self, turns: list[tuple[str, str | None]]) -> str:
        if turns and (turns[0][0] != self.roles[0] or not turns[0][1]):
            raise ValueError(f"the first message must be text from {self.roles[0]!r}, got {turns[0]!r}")
        prompt = ""
        for i, (_, text) in enumerate(turns):
            if not text:
                continue
            if i == 0 and self.system:
                text = f"<<SYS>>\n{self.system}\n<</SYS>>\n\n{text}"
            prompt += f"{self.sep}[INST] {text} [/INST]" if i % 2 == 0 else f" {text} {self.sep2}"
        return prompt.removeprefix(self.sep)  # the tokenizer adds the first separator, <s>, itself

    def process_image(
        self,
        image: Image.Image,
        image_process_mode: str,
        return_pil: bool = False,
        image_format: str = "PNG",
        max_len: int = CHAT_LONG,
        min_len: int = CHAT_SHORT,
    ) -> Image.Image | str:
        """Resizes an image as `fit_for_chat` does, to a Pillow image or the base64 text of a file of `image_format`."""
        from llava.image_geometry import encode_image_to_base64, fit_for_chat  # here, since they import Pillow

        fitted = fit_for_chat(image, image_process_mode, max_len, min_len)
        return fitted if return_pil else encode_image_to_base64(fitted, image_format)

    def get_images(self, return_pil: bool = False) -> list[Image.Image | str]:
        """Lists the user's images, resized as their messages ask.

        Args:
            return_pil: Return Pillow images; otherwise base64 text of PNG files.
        """
        found = [m for _, m in self.messages[self.offset :: 2] if isinstance(m, tuple)]
        return [self.process_image(image, mode, return_pil) for _, image, mode in found]

    def to_gradio_chatbot(self) -> list[list[str | None]]:
        """Builds `[user, assistant]` pairs; an image becomes an HTML `img` tag before its message's text."""
        pairs: list[list[str | None]] = []
        for i, (_, message) in enumerate(self.messages[self.offset :]):
            if i % 2 == 1:
                pairs[-1][1] = message
            elif isinstance(message, tuple):
                text, image, _ = message
                source = self.process_image(image, "Default", image_format="JPEG")
                tag = f'<img src="data:image/jpeg;base64,{source}" alt="user upload image" />'
                pairs.append([tag + text.replace(DEFAULT_IMAGE_TOKEN, "").strip(), None])
            else:
                pairs.append([message, None])
        return pairs

    def dict(self) -> Mapping[str, Any]:
        """Builds the record for a log, without images."""
        return {
            "system": self.system,
            "roles": self.roles,
            "messages": [[role, m[0] if isinstance(m, tuple) else m] for role, m in self.messages],
            "offset": self.offset,
            "sep": self.sep,
            "sep2": self.sep2,
        }


_HELPFUL = "The assistant gives helpful, detailed, and polite answers to the {}'s questions."
_HUMAN = "A chat between a curious human and an artificial intelligence assistant. " + _HELPFUL.format("human")
_USER = "A chat between a curious user and an artificial intelligence assistant. " + _HELPFUL.format("user")
_VISION = (
    "able to understand the visual content that the user provides, "
    "and assist the user with a variety of tasks using natural language."
)
_MMTAG = (
    "A chat between a curious user and an artificial intelligence assistant. "
    f"The assistant is {_VISION}"
    "The visual content will be provided with the following format: <Image>visual content</Image>."
)
_LLAMA_2 = (
    "You are a helpful, respectful and honest assistant. Always answer as helpfully as possible, while being safe.  "
    "Your answers should not include any harmful, unethical, racist, sexist, toxic, dangerous, or illegal content. "
    "Please ensure that your responses are socially unbiased and positive in nature.\n\n"
    "If a question does not make any sense, or is not factually coherent, explain why instead of answering something "
    "not correct. If you don't know the answer to a question, please don't share false information."
)
_EXAMPLE_QUESTION = "What are the key differences between renewable and non-renewable energy sources?"
_EXAMPLE_ANSWER = (
    "Renewable energy sources are those that can be replenished naturally in a relatively "
    "short amount of time, such as solar, wind, hydro, geothermal, and biomass. "
    "Non-renewable energy sources, on the other hand, are finite and will eventually be "
    "depleted, such as coal, oil, and natural gas. Here are some key differences between "
    "renewable and non-renewable energy sources:\n"
    "1. Availability: Renewable energy sources are virtually inexhaustible, while non-renewable "
    "energy sources are finite and will eventually run out.\n"
    "2. Environmental impact: Renewable energy sources have a much lower environmental impact "
    "than non-renewable sources, which can lead to air and water pollution, greenhouse gas emissions, "
    "and other negative effects.\n"
    "3. Cost: Renewable energy sources can be more expensive to initially set up, but they typically "
    "have lower operational costs than non-renewable sources.\n"
    "4. Reliability: Renewable energy sources are often more reliable and can be used in more remote "
    "locations than non-renewable sources.\n"
    "5. Flexibility: Renewable energy sources are often more flexible and can be adapted to different "
    "situations and needs, while non-renewable sources are more rigid and inflexible.\n"
    "6. Sustainability: Renewable energy sources are more sustainable over the long term, while "
    "non-renewable sources are not, and their depletion can lead to economic and social instability.\n"
)


def _turns_of_two(system: str, roles: tuple[str, str], version: str) -> Conversation:
    return Conversation(system, roles, [], 0, SeparatorStyle.TWO, sep=" ", sep2="</s>", version=version)


def _chatml(instruction: str) -> Conversation:
    roles = ("<|im_start|>user\n", "<|im_start|>assistant\n")
    return Conversation(
        f"<|im_start|>system\n{instruction}", roles, [], 0, SeparatorStyle.MPT, sep="<|im_end|>", version="mpt"
    )


def _llama_2(system: str, sep: str = "<s>") -> Conversation:
    roles = ("USER", "ASSISTANT")
    return Conversation(system, roles, [], 0, SeparatorStyle.LLAMA_2, sep=sep, sep2="</s>", version="llama_v2")


conv_vicuna_v0 = Conversation(
    _HUMAN, ("Human", "Assistant"), [["Human", _EXAMPLE_QUESTION], ["Assistant", _EXAMPLE_ANSWER]], offset=2
)
conv_vicuna_v1 = _turns_of_two(_USER, ("USER", "ASSISTANT"), "v1")
conv_llama_2 = _llama_2(_LLAMA_2)
conv_mistral_instruct = _llama_2("", sep="")
conv_chatml_direct = _chatml("Answer the questions.")
conv_mpt = _chatml(
    "A conversation between a user and an LLM-based AI assistant. The assistant gives helpful and honest answers."
)
conv_llava_plain = Conversation("", ("", ""), [], 0, SeparatorStyle.PLAIN, sep="\n")
conv_llava_v0 = Conversation(_HUMAN, ("Human", "Assistant"), [], 0)
conv_llava_v0_mmtag = Conversation(_MMTAG, ("Human", "Assistant"), [], 0, version="v0_mmtag")
conv_llava_v1 = _turns_of_two(_HUMAN, ("USER", "ASSISTANT"), "v1")
conv_llava_v1_mmtag = _turns_of_two(_MMTAG, ("USER", "ASSISTANT"), "v1_mmtag")
conv_llava_llama_2 = _llama_2(f"You are a helpful language and vision assistant. You are {_VISION}")
# Llama 3's and Qwen's own formats. Llama 3's tokenizer adds <|begin_of_text|> itself.
conv_llava_llama_3 = Conversation(
    f"<|start_header_id|>system<|end_header_id|>\n\n{conv_llava_llama_2.system}",
    ("<|start_header_id|>user<|end_header_id|>\n\n", "<|start_header_id|>assistant<|end_header_id|>\n\n"),
    [],
    0,
    SeparatorStyle.MPT,
    sep="<|eot_id|>",
    version="llama_v3",
)
conv_qwen = Conversation(
    "<|im_start|>system\nYou are a helpful assistant.",
    ("<|im_start|>user", "<|im_start|>assistant"),
    [],
    0,
    SeparatorStyle.CHATML,
    sep="<|im_end|>",
    version="qwen",
)

default_conversation = conv_vicuna_v1
conv_templates = {
    "default": conv_vicuna_v0,
    "v0": conv_vicuna_v0,
    "v1": conv_vicuna_v1,
    "vicuna_v1": conv_vicuna_v1,
    "llama_2": conv_llama_2,
    "mistral_instruct": conv_mistral_instruct,
    "chatml_direct": conv_chatml_direct,
    "mistral_direct": conv_chatml_direct,
    "plain": conv_llava_plain,
    "v0_plain": conv_llava_plain,
    "llava_v0": conv_llava_v0,
    "v0_mmtag": conv_llava_v0_mmtag,
    "llava_v1": conv_llava_v1,
    "v1_mmtag": conv_llava_v1_mmtag,
    "llava_llama_2": conv_llava_llama_2,
    "llava_llama_3": conv_llava_llama_3,
    "qwen_1_5": conv_qwen,
    "mpt": conv_mpt,
}
