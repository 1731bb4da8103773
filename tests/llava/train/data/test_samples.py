"""Samples are read one by one from a file, lines or a folder; each malformed one is named with its field."""

from __future__ import annotations

import json
import logging
import pickle
import re

import pytest

from llava.train.data.image_files import make_finder
from llava.train.data.sample import Sample, count_words, parse_sample
from llava.train.data.samples import open_samples

ASK, ANSWER = {"from": "human", "value": "What is it?"}, {"from": "gpt", "value": "A red ball."}
SHOW = {"from": "human", "value": "<image>\nWhat is it?"}
TWICE = {"from": "human", "value": "<image><image>"}
TEXT_ONLY = {"id": "t", "conversations": [ASK, ANSWER]}
WITH_IMAGE = {"id": "i", "image": "a.png", "conversations": [SHOW, ANSWER]}


def sample(*turns, **fields):
    return {"id": "x", **fields, "conversations": list(turns)}


def turn(speaker, value):
    return {"from": speaker, "value": value}


MALFORMED = [
    (["a"], r"it is \['a'\]; it must be an object with conversations"),
    ("text", "it is 'text'"),
    (None, "it is None"),
    ({"id": "x"}, "conversations is missing"),
    ({"messages": [{"role": "user"}]}, "conversations is missing.*not 'messages'"),
    ({"video": "x.mp4", "conversations": []}, "video is given, which training does not read; allowed is image"),
    ({"image": "a.png", "video": "x.mp4", "conversations": []}, "video is given, which training does not read"),
    ({"image": "a.png", "images": ["b.png"], "conversations": []}, "images is given, which training does not read"),
    ({"conversations": None}, "conversations is None; it must be a list"),
    ({"conversations": {"from": "human"}}, "conversations is {'from': 'human'}; it must be a list"),
    (sample(), "conversations holds nothing; it must begin with a question"),
    (sample(ANSWER), "conversations holds an answer only"),
    (sample("What?", ANSWER), r"conversations\[0\] is 'What\?'; it must be"),
    (sample({"value": "a"}, ANSWER), r"conversations\[0\].from is missing"),
    (sample(ASK, {"from": "gpt"}), r"conversations\[1\].value is missing"),
    (sample(ASK, turn("assistant", "a")), r"conversations\[1\].from is 'assistant'; allowed are 'human' and 'gpt'"),
    (sample(turn(["human"], "a"), ANSWER), r"conversations\[0\].from is \['human'\]"),
    (sample(ASK, turn("gpt", None)), r"conversations\[1\].value is None; it must be text"),
    (sample(ASK, turn("gpt", 3)), r"conversations\[1\].value is 3; it must be text"),
    (sample(ASK, ASK, ANSWER), r"conversations\[1\].from is 'human', like the turn before; it must be 'gpt'"),
    (sample(ASK, ANSWER, ANSWER), r"conversations\[2\].from is 'gpt', like the turn before; it must be 'human'"),
    (sample(ANSWER, ANSWER, ASK), r"conversations\[1\].from is 'gpt', like the turn before; it must be 'human'"),
    (sample(ASK, ANSWER, ASK), r"conversations\[2\] is a question without an answer"),
    (sample(ASK, turn("gpt", "\ud83d")), r"conversations\[1\].value contains a lone surrogate, '\\ud83d'"),
    (sample(SHOW, ANSWER, image=3), "image is 3; allowed are a path, a list of paths, and null"),
    (sample(SHOW, ANSWER, image={"path": "a"}), "image is {'path': 'a'}"),
    (sample(SHOW, ANSWER, image=["a.png", None]), r"image\[1\] is None"),
    (sample(SHOW, ANSWER, image=[""]), r"image\[0\] is ''"),
    (sample(SHOW, ANSWER, image="a\0.png"), "image is .*; a path has no null character"),
    (sample(SHOW, ANSWER, image="a\ud83d"), r"image contains a lone surrogate, '\\ud83d'"),
    (sample(ASK, ANSWER, image="a.png"), "image is .*'a.png'.*, but no question holds <image>"),
    (sample(SHOW, ANSWER), r"conversations\[0\].value has <image>, but the sample has no image"),
    (sample(ASK, ANSWER, turn("human", "Is it\n<image> "), ANSWER), r"conversations\[2\].value has <image>, but"),
    (sample(SHOW, turn("gpt", "<image>"), image="a.png"), r"conversations\[1\].value has <image>; only questions"),
    (sample(SHOW, ANSWER, SHOW, ANSWER, image="a.png"), r"conversations\[0\] and conversations\[2\] hold <image>"),
    (sample(SHOW, ANSWER, image=["a.png", "b.png"]), "the questions hold 1 <image>, but image has 2 paths"),
    (sample(SHOW, ANSWER, SHOW, ANSWER, image=list("abc")), "the questions hold 2 <image>, but image has 3 paths"),
]


def write_list(file, values):
    file.write_text(json.dumps(values), encoding="utf-8")
    return file


def write_lines(file, values):
    file.write_text("\n".join(map(json.dumps, values)), encoding="utf-8")
    return file


@pytest.mark.parametrize(("value", "message"), MALFORMED)
def test_a_malformed_sample_is_named_with_file_number_and_field(tmp_path, caplog, value, message):
    for file in (
        write_list(tmp_path / "a.json", [TEXT_ONLY, value, TEXT_ONLY]),
        write_lines(tmp_path / "a.jsonl", [TEXT_ONLY, value, TEXT_ONLY]),
    ):
        samples = open_samples(file)
        assert len(samples) == 2
        assert re.match(rf"{re.escape(str(file))}: sample 1: {message}", samples.malformed[0])
        assert caplog.messages[-1] == f"left out: {samples.malformed[0]}"
        assert [samples.where(i) for i in range(2)] == [f"{file}: sample 0", f"{file}: sample 2"]


def test_a_few_malformed_samples_are_left_out_more_are_an_error(tmp_path):
    file = write_list(tmp_path / "a.json", [TEXT_ONLY, *[{"id": i} for i in range(3)]])
    assert len(open_samples(file, max_bad=3)) == 1
    with pytest.raises(ValueError, match="more samples cannot be used than --max_bad_samples 2 allows") as caught:
        open_samples(file, max_bad=2)
    assert re.findall(r"sample \d+", str(caught.value)) == ["sample 1", "sample 2", "sample 3"]
    with pytest.raises(ValueError, match="--max_bad_samples 0"):
        open_samples(file, max_bad=0)


def test_images_that_are_not_there_count_as_samples_that_cannot_be_used(tmp_path):
    """Found at the start, not hours later, by listing each folder once."""
    images = tmp_path / "images"
    (images / "coco").mkdir(parents=True)
    for name in ("a.png", "coco/b.png"):
        (images / name).touch()
    paths = ["a.png", "coco/b.png", "coco/absent.png", str(images / "a.png"), str(tmp_path / "absent.png"), "c/d.png"]
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A ring."}]
    file = tmp_path / "samples.json"
    file.write_text(json.dumps([{"image": path, "conversations": turns} for path in paths]))
    exists = make_finder(images)
    assert [exists(path) for path in paths] == [True, True, False, True, False, False]
    samples = open_samples(file, 3, exists=exists)
    assert len(samples) == 6 and samples.malformed == ()  # left out when they are asked for, as unreadable ones
    with pytest.raises(
        ValueError, match="max_bad_samples 2 allows: .*sample 2: there is no image file coco/absent.png"
    ):
        open_samples(file, 2, exists=exists)


def test_the_error_shows_the_first_few(tmp_path):
    file = write_list(tmp_path / "a.json", [{"id": i} for i in range(30)])
    with pytest.raises(ValueError, match=r"--max_bad_samples 10 allows: .*; \.\.\.\. Correct or remove them") as caught:
        open_samples(file)
    assert re.findall(r"sample \d+", str(caught.value)) == [f"sample {i}" for i in range(5)]


def test_a_file_without_a_usable_sample_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"holds no sample that can be used: .*sample 0: it is 3"):
        open_samples(write_list(tmp_path / "a.json", [3]))


@pytest.mark.parametrize(
    ("value", "images", "texts"),
    [
        (TEXT_ONLY, (), ["What is it?", "A red ball."]),
        (WITH_IMAGE, ("a.png",), ["<image>\nWhat is it?", "A red ball."]),
        (sample(ANSWER, ASK, ANSWER), (), ["What is it?", "A red ball."]),
        (sample(ASK, ANSWER, image=None), (), ["What is it?", "A red ball."]),
        (sample(ASK, ANSWER, image=""), (), ["What is it?", "A red ball."]),
        (sample(ASK, ANSWER, image=[]), (), ["What is it?", "A red ball."]),
        (sample(SHOW, ANSWER, image=["a.png"]), ("a.png",), ["<image>\nWhat is it?", "A red ball."]),
        (sample(TWICE, turn("gpt", ""), image="/a/../b"), ("/a/../b",), ["<image><image>", ""]),
        (sample(SHOW, ANSWER, SHOW, ANSWER, image=["a", "b"]), ("a", "b"), [SHOW["value"], ANSWER["value"]] * 2),
        (sample(turn("human", "Is <image> RSS?"), turn("gpt", "<image>")), (), ["Is <image> RSS?", "<image>"]),
        ({"conversations": [turn("human", "é"), turn("gpt", "日本 🙂")]}, (), ["é", "日本 🙂"]),
    ],
)  # fmt: skip
def test_a_sound_sample_is_read(value, images, texts):
    parsed = parse_sample(value)
    assert parsed.images == images
    assert [(one["from"], one["value"]) for one in parsed.turns] == [
        (("human", "gpt")[i % 2], text) for i, text in enumerate(texts)
    ]


@pytest.mark.parametrize("ensure_ascii", [True, False])
def test_samples_are_read_back_in_any_order_and_process(tmp_path, ensure_ascii):
    values = [sample(turn("human", f"é {'日' * i}?"), turn("gpt", f"🙂 {i}")) for i in range(20)]
    file = tmp_path / "a.json"
    file.write_text(json.dumps(values, ensure_ascii=ensure_ascii, indent=1), encoding="utf-8")
    samples = pickle.loads(pickle.dumps(open_samples(file)))
    assert [samples[i] for i in (7, 0, 19, -1)] == [parse_sample(values[i]) for i in (7, 0, 19, 19)]
    assert list(samples) == [parse_sample(value) for value in values]
    assert isinstance(samples[3], Sample)
    with pytest.raises(IndexError, match="sample 20 of 20"):
        samples[20]


def test_a_folder_is_read_in_the_order_of_its_files(tmp_path):
    write_lines(tmp_path / "2.jsonl", [WITH_IMAGE, {}, TEXT_ONLY])
    write_list(tmp_path / "1.json", [TEXT_ONLY])
    (tmp_path / "readme.txt").write_text("no samples")
    (tmp_path / "3.json").mkdir()
    samples = open_samples(tmp_path)
    assert [samples.where(i) for i in range(3)] == [
        f"{tmp_path / '1.json'}: sample 0",
        f"{tmp_path / '2.jsonl'}: sample 0",
        f"{tmp_path / '2.jsonl'}: sample 2",
    ]
    assert [bool(one.images) for one in samples] == [False, True, False]


def test_what_is_not_read_of_a_folder_is_named(tmp_path, caplog):
    write_list(tmp_path / "A.JSON", [TEXT_ONLY])
    (tmp_path / "more").mkdir()
    for name in ("b.json.gz", "c.jsonl.zst", "readme.txt"):
        (tmp_path / name).write_bytes(b"")
    assert len(open_samples(tmp_path)) == 1
    assert f"not read: b.json.gz, c.jsonl.zst, more in {tmp_path}" in caplog.text


def test_words_are_counted_as_by_llava(tmp_path):
    dropped, empty = sample(ANSWER, ASK, ANSWER), sample(turn("human", ""), turn("gpt", " "))
    samples = open_samples(write_list(tmp_path / "a.json", [TEXT_ONLY, WITH_IMAGE, dropped, empty]))
    assert samples.words.tolist() == [-6, 7, -9, -1]
    assert count_words(dropped) == 9


def test_a_missing_file_and_an_empty_folder_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file: .*a.json; --data_path"):
        open_samples(tmp_path / "a.json")
    with pytest.raises(FileNotFoundError, match="holds no .json or .jsonl files"):
        open_samples(tmp_path)


def test_a_file_that_changes_during_training_is_noticed(tmp_path):
    file = write_list(tmp_path / "a.json", [TEXT_ONLY, WITH_IMAGE])
    samples = open_samples(file)
    write_list(file, [WITH_IMAGE, TEXT_ONLY])
    with pytest.raises(ValueError, match=r"a.json: sample 1: the file has changed since training began"):
        samples[1]


def test_the_number_of_samples_is_logged(tmp_path, caplog):
    file = write_list(tmp_path / "a.json", [TEXT_ONLY, {}, TEXT_ONLY])
    with caplog.at_level(logging.INFO):
        open_samples(file)
    assert caplog.messages[-1] == f"{file}: samples: 2, left out: 1"
