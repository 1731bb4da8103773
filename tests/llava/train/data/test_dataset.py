"""Samples as the model takes them: images as its tower wants them, text cut to fit, the unusable ones named."""

from __future__ import annotations

import copy
import json
import pickle
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPImageProcessorPil, SiglipImageProcessorPil

from llava import conversation
from llava.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from llava.conversation import conv_templates
from llava.mm_utils import tokenizer_image_token
from llava.model.vision.preparer import Preparer
from llava.train.data.dataset import (
    LazySupervisedDataset,
    make_supervised_data_module,
    preprocess,
    preprocess_multimodal,
)
from llava.train.flags import DataArguments
from llava.train.train import LazySupervisedDataset as EntryOfForks
from qlip.config import QLIPConfig
from qlip.cutting import ImageCutter
from qlip.image_processing import QLIPImageProcessor
from qlip.patches import CutImage
from tests.llava.train.tokenizers import make_tokenizer, talk, written_targets

CLIP = CLIPImageProcessorPil(size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56})
UNIFORM = Preparer(CLIP, None, None, native_tokens=16)
SETTINGS = QLIPConfig(max_tokens=30)
QUADTREE = Preparer(ImageCutter(14, 56), SETTINGS, None, native_tokens=16)
TOKENIZER = make_tokenizer("not legacy")
SHORT = conv_templates["v1"].copy()
SHORT.system = ""


@pytest.fixture
def images(tmp_path):
    """A folder with two images of noise, and one that is damaged."""
    generator = np.random.default_rng(0)
    for name, size in (("a.png", (56, 84)), ("b.png", (140, 56))):
        Image.fromarray(generator.integers(0, 255, (*size, 3), dtype=np.uint8)).save(tmp_path / name)
    (tmp_path / "damaged.png").write_bytes((tmp_path / "a.png").read_bytes()[:100])
    return tmp_path


@pytest.fixture
def make(images):
    """Makes the data set of some samples, each given as the texts of its turns and its images."""

    def make_dataset(*samples, preparer=UNIFORM, **changes):
        values = [
            {"conversations": talk(*texts)} | ({"image": image} if image is not None else {})
            for texts, image in samples
        ]
        file = images / "samples.json"
        file.write_text(json.dumps(values))
        return LazySupervisedDataset(file, TOKENIZER, make_arguments(images, preparer=preparer, **changes))

    return make_dataset


def make_arguments(folder, **changes):
    arguments = DataArguments(image_folder=str(folder), is_multimodal=True)
    vars(arguments).update({"template": SHORT, "max_length": 2048, "mm_use_im_start_end": False, **changes})
    return arguments


ONE = (["<image>\nWhat is it?", "a red ball"], "a.png")
TEXT = (["What is it?", "a red ball"], None)
TWO = (["<image>\nand <image>\nWhat?", "red"], ["b.png", "a.png"])


def test_a_sample_with_an_image_under_clip(make, images):
    item = make(ONE)[0]
    pixels = CLIP(Image.open(images / "a.png"), return_tensors="pt")["pixel_values"][0]
    torch.testing.assert_close(item["image"], pixels)
    assert item["images"] == [item["image"]]
    assert item["visual_tokens"] == 16
    ids = tokenizer_image_token(" USER: <image>\nWhat is it? ASSISTANT: a red ball</s>", TOKENIZER)
    assert item["input_ids"].tolist() == ids
    assert item["labels"].dtype == item["input_ids"].dtype == torch.int64
    assert written_targets(TOKENIZER, ids, item["labels"].tolist()) == [" a red ball</s>"]


def test_a_sample_with_an_image_under_the_quadtree(make, images):
    item = make(ONE, preparer=QUADTREE)[0]
    (cut,) = item["images"]
    alone = QUADTREE(images / "a.png").image
    assert isinstance(cut, CutImage)
    assert torch.equal(cut.patches, alone.patches)
    assert item["visual_tokens"] == len(cut.leaves)
    assert "image" not in item


@pytest.mark.parametrize("preparer", [UNIFORM, QUADTREE])
def test_several_images_keep_their_order_and_places(make, images, preparer):
    item = make(TWO, preparer=preparer)[0]
    alone = [preparer(images / name) for name in ("b.png", "a.png")]
    assert item["visual_tokens"] == sum(image.tokens for image in alone)
    assert "image" not in item
    for ours, theirs in zip(item["images"], alone, strict=True):
        pixels = [one.patches if isinstance(one, CutImage) else one for one in (ours, theirs.image)]
        assert torch.equal(*pixels)
    ids = tokenizer_image_token(" USER: <image>\nand <image>\nWhat? ASSISTANT: red</s>", TOKENIZER)
    assert item["input_ids"].tolist() == ids


def test_a_sample_of_text_has_no_image(make):
    item = make(TEXT, ONE)[0]
    assert item["images"] == []
    assert item["visual_tokens"] == 0
    assert item["input_ids"].tolist() == TOKENIZER(" USER: What is it? ASSISTANT: a red ball</s>").input_ids


def length_of(item):
    return len(item["input_ids"]) - len(item["images"]) + item["visual_tokens"]


@pytest.mark.parametrize("sample", [ONE, TEXT, TWO])
def test_text_is_cut_at_the_end_images_never(make, sample):
    whole = make(sample)[0]
    length, answer = length_of(whole), int((whole["labels"] != IGNORE_INDEX).sum())
    for limit in range(length - answer + 1, length + 2):
        item = make(sample, max_length=limit)[0]
        keep = len(whole["input_ids"]) - max(0, length - limit)
        assert length_of(item) == min(limit, length)
        assert item["input_ids"].tolist() == whole["input_ids"][:keep].tolist()
        assert item["labels"].tolist() == whole["labels"][:keep].tolist()
    skipped = make(sample, max_length=length - answer)[0]["skipped"]
    assert not skipped.is_bad
    assert re.search(r"samples.json: sample 0: .* leaves nothing of an answer", skipped.reason)


@pytest.mark.parametrize("limit", [1, 10, 33, 36])
def test_a_sample_whose_image_would_be_cut_is_left_out(make, limit):
    skipped = make(TWO, max_length=limit)[0]["skipped"]
    assert not skipped.is_bad
    assert re.search(
        rf"sample 0: it has \d+ text and 32 visual tokens, and --model_max_length is {limit}, which would cut an image",
        skipped.reason,
    )


def test_the_limit_is_the_tokenizers_unless_given(make):
    assert make(ONE, max_length=None).max_length == 2048


@pytest.mark.parametrize(
    ("name", "reason"),
    [("missing.png", "no such image file: {}"), ("damaged.png", "{}: .+"), ("samples.json", "{}: .+")],
)
def test_an_unreadable_image_is_named(make, images, name, reason):
    dataset = make((ONE[0], name), ONE)
    skipped = dataset[0]["skipped"]
    assert skipped.is_bad
    wanted = f"{images / 'samples.json'}: sample 0: {reason.format(images / name)}"
    assert re.fullmatch(wanted, skipped.reason)
    assert "skipped" not in dataset[1]


def test_what_a_processor_cannot_prepare_is_named(make, images):
    def refuse(image, return_tensors):
        raise ValueError("one pixel is not enough")

    item = make(ONE, preparer=Preparer(SimpleNamespace(preprocess=refuse), None, None, 16))[0]
    assert item["skipped"].is_bad
    assert item["skipped"].reason.endswith(f"{images / 'a.png'}: it cannot be prepared: one pixel is not enough")


def test_a_conversation_that_the_template_does_not_take_is_named(make):
    skipped = make((["<image>", "a", "b", "c"], "a.png"), template=conv_templates["plain"])[0]["skipped"]
    assert skipped.is_bad
    assert re.search("sample 0: the conversation has 4 turns", skipped.reason)


def test_images_need_a_tower(make):
    with pytest.raises(ValueError, match="sample 1 has an image, but the model has no vision tower.*--vision_tower"):
        make(TEXT, ONE, preparer=None)
    assert len(make(TEXT, preparer=None)) == 1


def test_a_missing_folder_is_said_before_training(make, images):
    asked = ("<image>\nWhat?", "A ring.")
    with pytest.raises(ValueError, match="there is no image folder nope; name it with --image_folder"):
        make((asked, "a.png"), image_folder="nope")
    arguments = make_arguments(images, preparer=UNIFORM, data_path=str(images / "samples.json"))
    vars(arguments).update(eval_data_path=arguments.data_path, eval_image_folder="nope")
    with pytest.raises(ValueError, match="there is no image folder nope; name it with --eval_image_folder"):
        make_supervised_data_module(TOKENIZER, arguments)
    assert make((("What?", "A ring."), None), image_folder="nope")


def test_absolute_paths_need_no_folder(make, images):
    item = make((ONE[0], str(images / "a.png")), image_folder=None)[0]
    assert len(item["images"]) == 1


@pytest.mark.parametrize(
    ("processor", "preparer"),
    [
        (CLIP, UNIFORM),
        (SiglipImageProcessorPil(size={"height": 28, "width": 28}), None),
        (QLIPImageProcessor(14, 56, qlip=SETTINGS), QUADTREE),
    ],
)
def test_forks_set_the_image_processor_alone(make, images, processor, preparer):
    item = make(ONE, preparer=None, image_processor=processor)[0]
    assert item["visual_tokens"] == (4 if preparer is None else preparer(images / "a.png").tokens)


def test_a_data_set_can_be_sent_to_another_process(make):
    dataset = make(ONE, TEXT, preparer=QUADTREE)
    sent = pickle.loads(pickle.dumps(dataset))
    assert torch.equal(sent[0]["images"][0].patches, dataset[0]["images"][0].patches)
    assert torch.equal(sent[1]["labels"], dataset[1]["labels"])


def test_lengths_are_those_of_llava(make):
    dataset = make(ONE, TEXT, TWO)
    assert len(dataset) == 3
    assert dataset.lengths == [7 + 128, 6, 5 + 128]
    assert dataset.modality_lengths == [7, -6, 5]


def test_the_evaluation_has_its_own_images(make, images, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    (images / "b.png").rename(other / "b.png")
    make((ONE[0], "a.png"))
    (images / "eval.json").write_text(json.dumps([{"image": "b.png", "conversations": talk(*ONE[0])}]))
    arguments = make_arguments(
        images,
        preparer=UNIFORM,
        data_path=images / "samples.json",
        eval_data_path=images / "eval.json",
        eval_image_folder=other,
        pack=100,
    )
    module = make_supervised_data_module(TOKENIZER, arguments)
    assert "images" in module["train_dataset"][0]
    assert "images" in module["eval_dataset"][0]
    assert (module["data_collator"].pack, module["data_collator"].tokenizer) == (100, TOKENIZER)
    arguments.eval_image_folder = None
    assert "skipped" in make_supervised_data_module(TOKENIZER, arguments)["eval_dataset"][0]
    arguments.eval_data_path = None
    assert make_supervised_data_module(TOKENIZER, arguments)["eval_dataset"] is None


def test_forks_find_the_data_set_where_llava_has_it():
    assert EntryOfForks is LazySupervisedDataset


@pytest.mark.parametrize(
    ("template", "changes", "images", "text", "placed"),
    [
        ("v1", {}, 1, "<image>\nWhat?", "<image>\nWhat?"),
        ("v1", {}, 1, "What?\n<image>", "<image>\nWhat?"),
        ("v1", {}, 1, " a <image> b ", "<image>\na  b"),
        ("v1", {}, 1, "<image>", "<image>"),
        ("v1", {}, 1, "<image> a <image>", "<image>\na"),
        ("v1", {}, 2, "<image> a <image>", "<image> a <image>"),
        ("v1", {}, 2, "What? <image>", "<image>\nWhat?"),
        ("v1", {}, 1, " no tag ", " no tag "),
        ("v1_mmtag", {}, 1, "What?<image>", "<Image><image></Image>\nWhat?"),
        ("v0_mmtag", {}, 2, "<image>, <image>", "<Image><image></Image>, <Image><image></Image>"),
        ("v1", {"mm_use_im_start_end": True}, 1, "<image>\na", "<im_start><image><im_end>\na"),
        ("v0_mmtag", {"mm_use_im_start_end": True}, 1, "<image>", "<Image><im_start><image><im_end></Image>"),
        ("v1", {"is_multimodal": False}, 1, "a <image>", "a <image>"),
    ],
)
def test_an_image_moves_to_where_the_template_has_it(template, changes, images, text, placed):
    given = [talk(text, "answer")]
    before = copy.deepcopy(given)
    arguments = make_arguments(".", template=conv_templates[template], **changes)
    assert preprocess_multimodal(given, arguments, images) == [talk(placed, "answer")]
    assert given == before


def test_preprocess_takes_the_default_template_and_drops_a_first_answer(monkeypatch):
    monkeypatch.setattr(conversation, "default_conversation", SHORT)
    talks = [talk("a?", "red"), [{"from": "gpt", "value": "hello"}, *talk("<image>\nb?", "ball")]]
    made = preprocess(talks, TOKENIZER, has_image=True)
    for i, prompt in enumerate([" USER: a? ASSISTANT: red</s>", " USER: <image>\nb? ASSISTANT: ball</s>"]):
        assert made["input_ids"][i].tolist() == tokenizer_image_token(prompt, TOKENIZER)
    assert [IMAGE_TOKEN_INDEX in ids for ids in made["input_ids"]] == [False, True]
    named = preprocess(talks[:1], TOKENIZER, template=conv_templates["plain"])
    assert named["input_ids"][0].tolist() == TOKENIZER("red\n").input_ids
