"""Tokenizer files as others write them: every form has the same ids, or is refused with the file and the value."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llava.mm_utils import tokenizer_image_token
from llava.model.loading.tokenizer import load_tokenizer
from tests.llava.model.loading.test_tokenizer import BARE, MODEL, write_folder

HELLO = MODEL.encode("hello")
SIZE = MODEL.get_piece_size()


def describe(content: str, special: bool = True) -> dict[str, Any]:
    flags = dict.fromkeys(("lstrip", "normalized", "rstrip", "single_word"), False)
    return {"content": content, "special": special, **flags}


@pytest.mark.parametrize("bos", [True, False])
@pytest.mark.parametrize("eos", [True, False])
def test_a_saved_tokenizer_begins_and_ends_texts_as_before(tmp_path: Path, bos: bool, eos: bool) -> None:
    source = write_folder(tmp_path / "source", {"add_bos_token": bos, "add_eos_token": eos})
    expected = [1] * bos + HELLO + [2] * eos
    assert load_tokenizer(source)("hello").input_ids == expected
    load_tokenizer(source).save_pretrained(tmp_path / "saved")
    assert load_tokenizer(tmp_path / "saved")("hello").input_ids == expected


@pytest.mark.parametrize("names", [["bos_token", "eos_token", "unk_token", "pad_token"], ["bos_token"], ["pad_token"]])
def test_an_empty_name_of_a_token_is_none(tmp_path: Path, names: list[str]) -> None:
    write_folder(tmp_path, {"legacy": False, **dict.fromkeys(names, "")})
    (tmp_path / "special_tokens_map.json").unlink()
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer("hello").input_ids == [1, *HELLO]
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.unk_token) == ("<s>", "</s>", "<unk>")


def test_tokens_that_a_map_calls_special_are(tmp_path: Path) -> None:
    write_folder(tmp_path, {"legacy": False})
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<im_end>": SIZE + 1, "<im_start>": SIZE}))
    special = {"bos_token": "<s>", "additional_special_tokens": ["<im_start>", "<im_end>"]}
    (tmp_path / "special_tokens_map.json").write_text(json.dumps(special))
    tokenizer = load_tokenizer(tmp_path)
    ids = tokenizer("<im_start>a<im_end> b", add_special_tokens=False).input_ids
    assert ids == [SIZE, *BARE("a"), SIZE + 1, *BARE(" b")]
    assert tokenizer.decode([SIZE, *HELLO], skip_special_tokens=True) == "hello"


@pytest.mark.parametrize("index", [SIZE + 8, SIZE - 1])
@pytest.mark.parametrize("form", ["added_tokens_decoder", "added_tokens.json"])
def test_ids_that_cannot_be_kept_are_refused(tmp_path: Path, index: int, form: str) -> None:
    write_folder(tmp_path, {form: {str(index): describe("<image>")}} if form == "added_tokens_decoder" else {})
    if form == "added_tokens.json":
        (tmp_path / form).write_text(json.dumps({"<image>": index}))
    with pytest.raises(ValueError, match=f"'<image>' the id {index}, but after tokenizer.model it is {SIZE}"):
        load_tokenizer(tmp_path)


def test_ids_behind_the_vocabulary_are_kept(tmp_path: Path) -> None:
    added = {str(SIZE): describe("<image>"), str(SIZE + 1): describe("<pad>", special=False)}
    tokenizer = load_tokenizer(write_folder(tmp_path, {"added_tokens_decoder": added}))
    assert tokenizer.convert_tokens_to_ids(["<image>", "<pad>"]) == [SIZE, SIZE + 1]


@pytest.mark.parametrize(
    "settings", [{"added_tokens_decoder": []}, {"added_tokens_decoder": {"a": describe("x")}}, {"padding_side": "up"}]
)
def test_an_impossible_setting_names_its_file(tmp_path: Path, settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"tokenizer_config\.json cannot be read"):
        load_tokenizer(write_folder(tmp_path, settings))


def test_a_beginning_that_no_file_names_is_refused(tmp_path: Path) -> None:
    """After an image it could not be distinguished from the text."""
    load_tokenizer(write_folder(tmp_path / "source", {})).save_pretrained(tmp_path)
    for name in ("tokenizer.model", "tokenizer_config.json"):
        (tmp_path / name).rename(tmp_path / "source" / name)
    with pytest.raises(ValueError, match="begins every text with '<s>', but no tokenizer_config.json names it"):
        load_tokenizer(tmp_path)
    (tmp_path / "source" / "tokenizer_config.json").rename(tmp_path / "tokenizer_config.json")
    ids = tokenizer_image_token("a<image>b", load_tokenizer(tmp_path))
    assert ids == [1, *MODEL.encode("a"), -200, *MODEL.encode("b")]
