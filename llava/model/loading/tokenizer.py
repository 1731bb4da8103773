"""LLaVA's tokenizer: SentencePiece's token ids, whatever class `config.json` or `tokenizer_config.json` names.

LLaVA tokenizes with transformers' original Llama tokenizer, which calls SentencePiece on the text between added tokens.
Today's transformers chooses another class by `model_type`, with mostly different ids. Here the ids depend on
`tokenizer.model` and `legacy` alone, and tests compare them with SentencePiece's.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sentencepiece import SentencePieceProcessor
from tokenizers import AddedToken, Regex, normalizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast, Qwen2Tokenizer

from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.model.loading.files import read_json
from llava.model.loading.sentencepiece_bpe import SPACE, make_backend, parse_model, user_symbols

SENTENCEPIECE_FILE = "tokenizer.model"
TOKENIZERS_FILE = "tokenizer.json"
BYTE_FILES = ("vocab.json", "merges.txt")  # of Qwen2's tokenizer
SETTINGS_FILES = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
"""Files that transformers reads besides these two, if they exist."""


def load_tokenizer(folder: str | Path) -> PreTrainedTokenizerBase:
    """Loads a checkpoint's tokenizer: `tokenizer.model` as LLaVA reads it, else `tokenizer.json`.

    Args:
        folder: a local folder.

    Raises:
        FileNotFoundError: it holds neither file.
        ValueError: a file is damaged, or its SentencePiece model is not of Llama's kind.
    """
    folder = Path(folder)
    files = {name: read_json(folder / name) for name in SETTINGS_FILES if (folder / name).is_file()}
    has_json = (folder / TOKENIZERS_FILE).is_file()
    has_bytes = all((folder / name).is_file() for name in BYTE_FILES)
    wants_json = files.get("tokenizer_config.json", {}).get("tokenizer_class") == "PreTrainedTokenizerFast"
    if (folder / SENTENCEPIECE_FILE).is_file() and not (has_json and wants_json):
        return _load_sentencepiece(folder, files)
    if not has_json and not has_bytes:
        raise FileNotFoundError(
            f"{folder} has no {SENTENCEPIECE_FILE} and no {TOKENIZERS_FILE}; copy the tokenizer's files of the language"
            " model there"
        )
    file = folder / (TOKENIZERS_FILE if has_json else BYTE_FILES[0])
    try:
        tokenizer = (PreTrainedTokenizerFast if has_json else Qwen2Tokenizer).from_pretrained(str(folder))
    except Exception as error:  # the tokenizers library raises Exception itself
        raise ValueError(f"{file} cannot be read: {' '.join(str(error).split())}") from error
    if (ids := tokenizer("").input_ids) and tokenizer.bos_token_id is None:
        raise ValueError(
            f"{file} begins every text with {tokenizer.convert_ids_to_tokens(ids[0])!r}, but no"
            " tokenizer_config.json names it as bos_token, so it would be repeated after an image"
        )
    return tokenizer


class LlavaTokenizer(PreTrainedTokenizerFast):
    """Llama's SentencePiece tokenizer with the ids of transformers' original class, and offsets.

    `legacy` (True by default and where `tokenizer_config.json` does not set it) decides where SentencePiece's leading
    space is added: to every stretch between added tokens, or without it to the start of the text only.
    """

    vocab_files_names = {"vocab_file": SENTENCEPIECE_FILE}
    padding_side = "left"

    def __init__(
        self,
        vocab_file: str,
        legacy: bool | None = None,
        bos_token: str | AddedToken | None = "<s>",
        eos_token: str | AddedToken | None = "</s>",
        unk_token: str | AddedToken | None = "<unk>",
        add_bos_token: bool | None = True,
        add_eos_token: bool | None = False,
        **kwargs: Any,
    ) -> None:
        """
        Args:
            vocab_file: the SentencePiece model.
            legacy: see the class.
            bos_token, eos_token, unk_token: names of its control tokens.
            add_bos_token: whether ids begin with `bos_token`.
            add_eos_token: whether they end with `eos_token`.
            **kwargs: other fields of `tokenizer_config.json`.

        Raises:
            ValueError: the file is not a SentencePiece model of Llama's kind.
        """
        self.legacy = legacy is None or bool(legacy)
        # An empty name, as in the first conversions of Llama, means none; as a token it would match everywhere.
        bos_token, eos_token, unk_token = (
            default if token is not None and str(token) == "" else token
            for token, default in ((bos_token, "<s>"), (eos_token, "</s>"), (unk_token, "<unk>"))
        )
        kwargs = {name: None if str(value) == "" else value for name, value in kwargs.items()}
        self.model_bytes = Path(vocab_file).read_bytes()
        proto = parse_model(self.model_bytes, vocab_file)
        self._has_prefix = proto.normalizer_spec.add_dummy_prefix
        self._symbols = frozenset(user_symbols(proto))
        self._tokenizer = make_backend(proto, None if unk_token is None else str(unk_token))
        proto.normalizer_spec.add_dummy_prefix = False  # decoding keeps every space; `_decode` drops the leading one
        self._sentencepiece = SentencePieceProcessor(model_proto=proto.SerializeToString())
        self._set_normalizer([])
        for name in ("backend", "tokenizer_file", "is_local", "local_files_only"):
            kwargs.pop(name, None)
        super().__init__(
            vocab_file=vocab_file,
            legacy=self.legacy,
            bos_token=bos_token,
            eos_token=eos_token,
            unk_token=unk_token,
            add_bos_token=add_bos_token is None or add_bos_token,
            add_eos_token=bool(add_eos_token),
            **kwargs,
        )

    @classmethod
    def convert_to_native_format(cls, **kwargs: Any) -> dict[str, Any]:
        """Keeps transformers from building its own backend: `__init__` reads the file."""
        return kwargs

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> tuple[str, ...]:
        """Writes `tokenizer.model`, `tokenizer.json` with the same ids, and a configuration that LLaVA can read."""
        files = super().save_pretrained(save_directory, *args, **kwargs)
        model_file, config_file = Path(save_directory) / SENTENCEPIECE_FILE, Path(files[0])
        model_file.write_bytes(self.model_bytes)
        settings = json.loads(config_file.read_text(encoding="utf-8"))
        for name in ("backend", "is_local", "local_files_only"):
            settings.pop(name, None)
        if extra := settings.pop("extra_special_tokens", None):
            settings["additional_special_tokens"] = extra
        settings |= {"tokenizer_class": "LlamaTokenizer", "legacy": self.legacy}
        settings |= {"add_bos_token": self.add_bos_token, "add_eos_token": self.add_eos_token}
        settings["added_tokens_decoder"] = {
            str(index): _describe(token) for index, token in sorted(self._own_tokens().items())
        }
        text = json.dumps(settings, indent=2, sort_keys=True, ensure_ascii=False)
        config_file.write_text(text + "\n", encoding="utf-8")
        return (*files, str(model_file))

    def _add_tokens(self, new_tokens: Sequence[str | AddedToken], special_tokens: bool = False) -> int:
        """Adds tokens so that the text around them is tokenized according to `legacy`."""
        tokens = [self._with_normalization(token, special_tokens) for token in new_tokens]
        self._symbols -= {token.content for token in tokens}
        known = [*self._own_tokens().values(), *tokens]
        self._set_normalizer(known)  # before they are added: adding applies the normalizer to all tokens
        return self._tokenizer.add_tokens(tokens)

    def _own_tokens(self) -> dict[int, AddedToken]:
        """Maps ids to the tokens that were added to SentencePiece's, its user-defined symbols not among them."""
        known = self._tokenizer.get_added_tokens_decoder()
        return {index: token for index, token in known.items() if token.content not in self._symbols}

    def _with_normalization(self, token: str | AddedToken, special: bool) -> AddedToken:
        """Builds a token that is matched before normalization with `legacy`, and in the normalized text without.

        Only then does the normalizer get each stretch of text with `legacy`, and the start of the text without.
        """
        own = AddedToken(token) if isinstance(token, str) else token
        return AddedToken(
            own.content,
            single_word=own.single_word,
            lstrip=own.lstrip,
            rstrip=own.rstrip,
            normalized=not self.legacy,
            special=own.special or special or own.content in self.all_special_tokens,
        )

    def _set_normalizer(self, added: Sequence[AddedToken]) -> None:
        """Adds the prefix to text, but not to special tokens.

        After an added <image> text starts again, since LLaVA tokenizes the parts before and after it separately. The
        backend matches an added token in its normalized form, so a token by itself must get no prefix; nor does a text
        that is one user-defined symbol and nothing else.
        """
        steps: list[Any] = []
        symbols = [re.escape(symbol) + r"\z" for symbol in sorted(self._symbols)]
        if self._has_prefix and self.legacy and symbols:
            steps.append(normalizers.Replace(Regex(rf"\A(?!{'|'.join(symbols)})(?=[\s\S])"), SPACE))
        elif self._has_prefix and self.legacy:
            steps.append(normalizers.Prepend(SPACE))
        elif self._has_prefix:
            has_image = any(token.content == DEFAULT_IMAGE_TOKEN for token in added)
            begin = r"(?:\A|(?<=<image>))" if has_image else r"\A"
            unmarked = [re.escape(token.content) + ("" if token.special else r"\z") for token in added] + symbols
            refusal = f"(?!{'|'.join(unmarked)})" if unmarked else ""
            steps.append(normalizers.Replace(Regex(rf"{begin}{refusal}(?=[\s\S])"), SPACE))
        self._tokenizer.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", SPACE)])

    def _decode(self, token_ids: Any, skip_special_tokens: bool = False, *args: Any, **kwargs: Any) -> str:
        """Decodes by SentencePiece, byte by byte where bytes form no character; inverts encoding.

        Ids without a token, such as rows that pad an embedding, are skipped.
        """
        ids = token_ids["input_ids"] if isinstance(token_ids, dict) else token_ids
        added = self._own_tokens()
        pieces = self._sentencepiece.get_piece_size()
        text, run = "", []
        for index in [ids] if isinstance(ids, int) else ids:
            token = added.get(int(index))
            if token is None and 0 <= index < pieces:
                run.append(int(index))
            elif token is not None and not (skip_special_tokens and token.special):
                text += self._decode_run(run, not text) + token.content
                run = []
        return text + self._decode_run(run, not text)

    def _decode_run(self, ids: list[int], is_first: bool) -> str:
        """Decodes ids without added tokens, without the prefix that encoding adds."""
        if not ids:
            return ""
        text = self._sentencepiece.decode(ids)
        has_prefix = self._has_prefix and self._sentencepiece.id_to_piece(ids[0]).startswith(SPACE)
        return text[1:] if has_prefix and (is_first or self.legacy) else text


def _load_sentencepiece(folder: Path, files: Mapping[str, Mapping[str, Any]]) -> LlavaTokenizer:
    """Loads `tokenizer.model` with the settings in `files`, the JSON files of its folder by name."""
    settings = files.get("tokenizer_config.json", {})
    # transformers drops these two if there is a tokenizer.json, which it expects to be read instead.
    ends = {name: settings[name] for name in ("add_bos_token", "add_eos_token") if name in settings}
    try:
        tokenizer = LlavaTokenizer.from_pretrained(str(folder), **ends)
        given = settings.get("added_tokens_decoder") or {}
        added = {token["content"]: int(index) for index, token in given.items()} or files.get("added_tokens.json", {})
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        if str(folder) in str(error):
            raise
        raise ValueError(f"{folder / 'tokenizer_config.json'} cannot be read: {error}") from error
    for content, index in added.items():
        if (found := tokenizer.convert_tokens_to_ids(content)) != index:
            raise ValueError(
                f"{folder} gives the added token {content!r} the id {index}, but after {SENTENCEPIECE_FILE} it is"
                f" {found}; ids of added tokens must follow each other from the end of its vocabulary"
            )
    return tokenizer


def _describe(token: AddedToken) -> dict[str, Any]:
    """Formats an added token as in `tokenizer_config.json`."""
    names = ("content", "lstrip", "normalized", "rstrip", "single_word", "special")
    return {name: getattr(token, name) for name in names}
