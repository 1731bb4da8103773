"""Token ids are SentencePiece's, whatever the model type, whatever `legacy` says; so are decoded texts."""

from __future__ import annotations

import io
import itertools
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sentencepiece import SentencePieceProcessor
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from llava.mm_utils import tokenizer_image_token
from llava.model.loading.tokenizer import load_tokenizer

DATA = Path(__file__).parents[3] / "data" / "tokenizer"
CASES = [json.loads(line) for line in (DATA / "ids.jsonl").read_text(encoding="utf-8").splitlines()]
LEGACY: dict[str, dict[str, Any]] = {"absent": {}, "true": {"legacy": True}, "false": {"legacy": False}}
CONTROL = {"<unk>": 0, "<s>": 1, "</s>": 2}
MODEL = SentencePieceProcessor(model_file=str(DATA / "tokenizer.model"))

PIECES = ["</s>", "<s>", "<unk>", " ", "  ", "\n", "\u2581", "<0x0A>", "the ", " image", "<image>"]
TEXTS = st.lists(st.one_of(st.sampled_from(PIECES), st.text(max_size=6)), max_size=8).map("".join)


def write_folder(folder: Path, settings: dict[str, Any], model_type: str = "llava") -> Path:
    """The files that a released LLaVA v1.5 checkpoint has beside its weights."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(DATA / "tokenizer.model", folder)
    tokens = {
        name: {"__type": "AddedToken", "content": content, "lstrip": False, "normalized": False, "rstrip": False,
               "single_word": False}
        for name, content in (("bos_token", "<s>"), ("eos_token", "</s>"), ("unk_token", "<unk>"))
    }  # fmt: skip
    values = {
        "add_bos_token": True,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 2048,
        "pad_token": None,
        "padding_side": "right",
        "sp_model_kwargs": {},
        "tokenizer_class": "LlamaTokenizer",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps({**tokens, **values, **settings}))
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<unk>"}
    (folder / "special_tokens_map.json").write_text(json.dumps(special))
    (folder / "config.json").write_text(
        json.dumps({"model_type": model_type, "architectures": ["LlavaLlamaForCausalLM"]})
    )
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    home = tmp_path_factory.mktemp("tokenizers")
    return {name: write_folder(home / name, value) for name, value in LEGACY.items()}


@pytest.fixture(scope="module")
def tokenizers(folders: dict[str, Path]) -> dict[str, Any]:
    return {name: load_tokenizer(folder) for name, folder in folders.items()}


def without_prefix() -> Callable[[str], list[int]]:
    """SentencePiece without the space that it puts in front of a text."""
    proto = sentencepiece.sentencepiece_model_pb2.ModelProto.FromString((DATA / "tokenizer.model").read_bytes())
    proto.normalizer_spec.add_dummy_prefix = False
    return SentencePieceProcessor(model_proto=proto.SerializeToString()).encode


BARE = without_prefix()


def ids_by_sentencepiece(text: str, legacy: bool) -> list[int]:
    """What LLaVA's tokenizer does: SentencePiece on the stretches between control tokens.

    Without `legacy` the whole text gets one space in front, which goes again where a control token follows it.
    """
    if not text:
        return []
    if not legacy:
        text = " " + text.replace("\u2581", " ")
    encode = MODEL.encode if legacy else BARE
    ids: list[int] = []
    for stretch in re.split("(<unk>|<s>|</s>)", text):
        ids += [CONTROL[stretch]] if stretch in CONTROL else encode(stretch)
    space = MODEL.piece_to_id("\u2581")
    return ids[1:] if not legacy and re.match(" (?:<unk>|<s>|</s>)", text) and ids[0] == space else ids


@pytest.mark.parametrize("model_type", ["llava", "llava_llama"])
@pytest.mark.parametrize("legacy", LEGACY)
def test_prompts_have_the_ids_that_llava_gets(tmp_path: Path, legacy: str, model_type: str) -> None:
    tokenizer = load_tokenizer(write_folder(tmp_path, LEGACY[legacy], model_type))
    column = "not legacy" if legacy == "false" else "legacy"
    for case in CASES:
        assert tokenizer_image_token(case["text"], tokenizer) == case[column], case["text"]


@pytest.mark.parametrize("legacy", LEGACY)
@settings(max_examples=50)
@given(text=TEXTS)
def test_any_text_has_sentencepieces_ids(tokenizers: dict[str, Any], legacy: str, text: str) -> None:
    expected = ids_by_sentencepiece(text, legacy != "false")
    assert tokenizers[legacy](text, add_special_tokens=False).input_ids == expected
    assert tokenizers[legacy](text).input_ids == [1, *expected]


@pytest.mark.parametrize("legacy", LEGACY)
@settings(max_examples=60)
@given(text=TEXTS.filter(lambda text: "\u2581" not in text and "\0" not in text))
def test_decoding_inverts_encoding(tokenizers: dict[str, Any], legacy: str, text: str) -> None:
    tokenizer = tokenizers[legacy]
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False).input_ids) == text


@settings(max_examples=60)
@given(ids=st.lists(st.integers(3, MODEL.get_piece_size() - 1), max_size=12))
@example(ids=[MODEL.piece_to_id("<0x20>"), MODEL.piece_to_id("a")])
def test_any_ids_decode_as_sentencepiece_decodes_them(tokenizers: dict[str, Any], ids: list[int]) -> None:
    """Bytes that form no character included: each is a sign of its own, and a whole character beside them stays."""
    for tokenizer in tokenizers.values():
        assert tokenizer.decode(ids) == MODEL.decode(ids)
        assert tokenizer.decode([1, *ids, 2], skip_special_tokens=True) == MODEL.decode(ids)


def test_special_tokens_are_shown_or_skipped(tokenizers: dict[str, Any]) -> None:
    ids = [1, *MODEL.encode("hi"), 2, *BARE(" there"), 10**6]
    assert tokenizers["false"].decode(ids) == "<s> hi</s> there"
    assert tokenizers["false"].decode(ids, skip_special_tokens=True) == "hi there"
    assert tokenizers["true"].batch_decode([ids[:2], [2]], skip_special_tokens=True) == [MODEL.decode(ids[1:2]), ""]


@pytest.mark.parametrize("legacy", LEGACY)
@settings(max_examples=25)
@given(text=TEXTS)
def test_offsets_point_at_the_text(tokenizers: dict[str, Any], legacy: str, text: str) -> None:
    """In order and without a gap; the bytes of one character share its place."""
    spans = tokenizers[legacy](text, add_special_tokens=False, return_offsets_mapping=True).offset_mapping
    assert spans == sorted(spans)
    assert {i for start, end in spans for i in range(start, end)} == set(range(len(text)))


# Saved


@pytest.mark.parametrize("legacy", LEGACY)
def test_a_saved_tokenizer_has_the_same_ids_for_every_reader(
    tmp_path: Path, folders: dict[str, Path], legacy: str
) -> None:
    """Ours, transformers' Auto class on a LLaVA of its format, the tokenizers library, and SentencePiece."""
    tokenizer = load_tokenizer(folders[legacy])
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llava"}))
    again, theirs = load_tokenizer(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    backend = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    model = SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    for text in ["", "  two", *(case["text"] for case in CASES)]:
        expected = [1, *ids_by_sentencepiece(text, legacy != "false")]
        assert again(text).input_ids == theirs(text).input_ids == backend.encode(text).ids == expected, text
        assert model.encode(text) == MODEL.encode(text)
    assert (again.pad_token, again.padding_side, again.model_max_length) == (tokenizer.pad_token, "right", 2048)


def test_a_saved_configuration_is_the_original_classes(tmp_path: Path, folders: dict[str, Path]) -> None:
    """Its fields are those that transformers 4 wrote, so that LLaVA's own code reads them."""
    load_tokenizer(folders["false"]).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert saved["tokenizer_class"] == "LlamaTokenizer" and saved["legacy"] is False
    assert (saved["add_bos_token"], saved["add_eos_token"]) == (True, False)
    assert {index: token["content"] for index, token in saved["added_tokens_decoder"].items()} == {
        str(index): content for content, index in CONTROL.items()
    }


@pytest.mark.parametrize("legacy", LEGACY)
@pytest.mark.parametrize("saved", [False, True])
def test_an_added_image_token_separates_texts_as_llava_does(
    tmp_path: Path, folders: dict[str, Path], legacy: str, saved: bool
) -> None:
    """As in a checkpoint of transformers' format, where a prompt is tokenized in one piece."""
    plain, tokenizer = load_tokenizer(folders[legacy]), load_tokenizer(folders[legacy])
    marks = ["<im_start>", "<im_end>"]
    assert plain.add_tokens(marks, special_tokens=True) == 2
    assert tokenizer.add_tokens([*marks, "<image>"], special_tokens=True) == 3
    if saved:
        tokenizer.save_pretrained(tmp_path)
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "llava"}))
        tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    image = tokenizer.convert_tokens_to_ids("<image>")
    parts = ["", "a", " a", "\n", "</s>", "</s>a", "  ", "a</s>", "a<im_start>", "<im_end>a"]
    for first, second, third in itertools.product(parts, repeat=3):
        text = f"{first}<image>{second}<image>{third}"
        assert tokenizer(text).input_ids == tokenizer_image_token(text, plain, image), text


def test_text_beside_a_token_that_was_added_keeps_its_ids(folders: dict[str, Path]) -> None:
    """Text after it gets a space with `legacy` alone."""
    a, space_a = MODEL.piece_to_id("a"), MODEL.piece_to_id("\u2581a")
    for name, behind in (("true", [space_a]), ("false", BARE("a"))):
        tokenizer = load_tokenizer(folders[name])
        tokenizer.add_tokens(["<im_start>"], special_tokens=True)
        start = tokenizer.convert_tokens_to_ids("<im_start>")
        assert start == MODEL.get_piece_size()
        assert tokenizer("a<im_start>a", add_special_tokens=False).input_ids == [space_a, start, *behind]
        assert tokenizer.decode([a, start, a]) == "a<im_start>a"


def test_a_chat_template_gives_the_ids_of_its_text(tokenizers: dict[str, Any]) -> None:
    template = "{% for m in messages %}{{ m.role.upper() }}: {{ m.content }}{{ eos_token }}{% endfor %}"
    messages = [{"role": "user", "content": " hi "}, {"role": "assistant", "content": "yes"}]
    for name, tokenizer in tokenizers.items():
        ids = tokenizer.apply_chat_template(messages, chat_template=template, return_dict=False)
        assert ids == ids_by_sentencepiece("USER:  hi </s>ASSISTANT: yes</s>", name != "false")


# Files


def test_a_folder_without_tokenizer_files_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"has no tokenizer.model and no tokenizer.json"):
        load_tokenizer(tmp_path)


def test_a_tokenizer_json_alone_is_read_as_it_is(tmp_path: Path, folders: dict[str, Path]) -> None:
    load_tokenizer(folders["true"]).save_pretrained(tmp_path)
    (tmp_path / "tokenizer.model").unlink()
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    backend = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(tmp_path)
    assert all(tokenizer(case["text"]).input_ids == backend.encode(case["text"]).ids for case in CASES)


@pytest.mark.parametrize("content", [b"", b"not a model", (DATA / "tokenizer.model").read_bytes()[:3000]])
def test_a_broken_tokenizer_model_is_refused(tmp_path: Path, content: bytes) -> None:
    write_folder(tmp_path, {})
    (tmp_path / "tokenizer.model").write_bytes(content)
    with pytest.raises(ValueError, match=r"tokenizer\.model"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"model_type": "unigram"}, "other than BPE"),
        ({"normalization_rule_name": "nmt_nfkc"}, "nmt_nfkc"),
        ({"remove_extra_whitespaces": True}, "remove_extra_whitespaces"),
    ],
)
def test_a_sentencepiece_model_of_another_kind_is_refused(tmp_path: Path, options: dict[str, Any], named: str) -> None:
    written = io.BytesIO()
    kind = {"model_type": "bpe", "normalization_rule_name": "identity", "remove_extra_whitespaces": False}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["what is in the picture"] * 20), model_writer=written, vocab_size=300,
        hard_vocab_limit=False, byte_fallback=True, minloglevel=2, **{**kind, **options},
    )  # fmt: skip
    write_folder(tmp_path, {})
    (tmp_path / "tokenizer.model").write_bytes(written.getvalue())
    with pytest.raises(ValueError, match=named):
        load_tokenizer(tmp_path)
