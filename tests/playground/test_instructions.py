"""Scenes as LLaVA's training data: valid samples, true answers, exact by seed."""

from __future__ import annotations

import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.conversation import conv_templates
from llava.model.multimodal_encoder.pretrained import default_image_processor
from llava.model.vision.preparer import Preparer
from llava.train.data.dataset import LazySupervisedDataset
from playground.instructions import main
from playground.model import vision_config
from playground.questions import KINDS, WORDINGS, listing
from playground.scenes import PRESETS, scene

SCENES = 60


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("instructions")
    assert main(["--out", str(out), "--scenes", str(SCENES), "--seed", "5"]) == 0
    return out


@pytest.fixture(scope="module")
def captions(folder):
    return json.loads((folder / "captions.json").read_text())


@pytest.fixture(scope="module")
def conversations(folder):
    return json.loads((folder / "conversations.json").read_text())


def pairs(sample):
    turns = sample["conversations"]
    return list(zip(turns[::2], turns[1::2], strict=True))


def kind_of(question):
    """The kind whose wording, with any words in its gaps, is the question."""
    for kind, wordings in WORDINGS.items():
        for wording in wordings:
            if re.fullmatch(re.sub(r"\\\{\w+\\\}", r"[a-z ]+", re.escape(wording)), question):
                return kind
    raise AssertionError(question)


def test_every_turn_is_of_humans_and_gpt_alternately(captions, conversations):
    for sample in captions + conversations:
        assert all(h["from"] == "human" and g["from"] == "gpt" and h["value"] and g["value"] for h, g in pairs(sample))


def test_an_image_is_asked_for_once_and_first(captions, conversations):
    for sample in captions + conversations:
        said = [turn["value"].count(DEFAULT_IMAGE_TOKEN) for turn in sample["conversations"]]
        assert said == [int("image" in sample)] + [0] * (len(said) - 1)
        assert sample["conversations"][0]["value"].startswith(f"{DEFAULT_IMAGE_TOKEN}\n") == ("image" in sample)


def test_images_and_captions_are_those_of_the_scenes(folder, captions):
    assert len(captions) == SCENES
    for index, sample in enumerate(captions):
        made = scene(PRESETS["base"], 5, index)
        assert np.array_equal(np.asarray(Image.open(folder / "images" / sample["image"])), made.image)
        assert sample["conversations"][1]["value"] == listing(made.objects)


def test_ids_are_unique(captions, conversations):
    for samples in (captions, conversations):
        assert len({sample["id"] for sample in samples}) == len(samples)


def test_conversations_have_one_to_six_turns_of_all_kinds_about_every_scene(conversations):
    seen = [sample for sample in conversations if "image" in sample]
    assert len(seen) == SCENES
    assert {len(pairs(sample)) for sample in seen} == {1, 2, 3, 4, 5, 6}
    asked = [[kind_of(human["value"].removeprefix("<image>\n")) for human, _ in pairs(sample)] for sample in seen]
    assert {kind for row in asked for kind in row} == set(KINDS)
    assert len({row[0] for row in asked}) >= 5
    assert all("listing" not in row[:-1] for row in asked)  # later answers could be copied from it


def test_a_tenth_more_are_in_words(conversations):
    in_words = [sample for sample in conversations if "image" not in sample]
    assert len(in_words) == SCENES // 10
    for sample in in_words:
        opening, question = sample["conversations"][0]["value"].split(". ")
        objects = re.findall(r"a (\w+ \w+)", opening)
        assert opening.startswith("The picture shows a ") and 2 <= len(objects) <= 5
        if kind_of(question) == "count":
            assert sample["conversations"][1]["value"] == str(len(objects))


def test_the_same_seed_gives_the_same_files_and_fewer_scenes_their_beginning(folder, captions, tmp_path):
    assert main(["--out", str(tmp_path), "--scenes", "10", "--seed", "5"]) == 0
    assert json.loads((tmp_path / "captions.json").read_text()) == captions[:10]
    before = (folder / "conversations.json").stat().st_mtime_ns
    assert main(["--out", str(folder), "--scenes", str(SCENES), "--seed", "5"]) == 0
    assert (folder / "conversations.json").stat().st_mtime_ns == before  # they were there


def test_no_text_samples_are_written_where_none_are_wanted(tmp_path):
    assert main(["--out", str(tmp_path), "--scenes", "10", "--text-share", "0"]) == 0
    assert all("image" in sample for sample in json.loads((tmp_path / "conversations.json").read_text()))


@pytest.mark.parametrize(
    ("file", "template", "end"), [("captions.json", "plain", "\n"), ("conversations.json", "v1", "</s>")]
)
def test_training_takes_every_sample_and_aims_at_its_answers(folder, tokenizer, file, template, end):
    arguments = SimpleNamespace(
        is_multimodal=True,
        image_folder=str(folder / "images"),
        image_aspect_ratio="pad",
        mm_use_im_start_end=False,
        preparer=Preparer(default_image_processor(vision_config()), None, "pad", 64),
        template=conv_templates[template],
        max_length=2048,
    )
    samples = LazySupervisedDataset(folder / file, tokenizer, arguments)
    written = json.loads((folder / file).read_text())
    assert len(samples) == len(written)
    for item, sample in zip((samples[i] for i in range(20)), written, strict=False):
        assert item["visual_tokens"] == 64 * ("image" in sample)
        targets = tokenizer.decode(item["labels"][item["labels"] != -100])
        assert targets == "".join(answer["value"] + end for _, answer in pairs(sample))
