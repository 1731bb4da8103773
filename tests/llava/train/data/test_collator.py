"""Batches: padded on the right, masks from lengths, images in order, samples left out counted."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from llava.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from llava.conversation import conv_templates
from llava.model.vision.preparer import Preparer
from llava.train.data.dataset import DataCollatorForSupervisedDataset, LazySupervisedDataset
from llava.train.data.packing import assign_rows
from llava.train.flags import DataArguments
from llava.train.throughput import BatchCounts, Skipped
from qlip.config import QLIPConfig
from qlip.cutting import ImageCutter
from tests.llava.train.tokenizers import make_tokenizer, talk

TOKENIZER = make_tokenizer("not legacy")
UNKNOWN = TOKENIZER.unk_token_id
COLLATE = DataCollatorForSupervisedDataset(TOKENIZER)


def item(ids, images=(), visual=0):
    tokens = torch.tensor(ids)
    labels = torch.where(tokens < 0, IGNORE_INDEX, tokens)
    labels[0] = IGNORE_INDEX
    return {"input_ids": tokens, "labels": labels, "images": list(images), "visual_tokens": visual}


SMALL, WIDE = torch.rand(3, 4, 4), torch.rand(3, 4, 8)


def test_rows_are_padded_on_the_right_and_masked_by_length():
    batch = COLLATE([item([1, UNKNOWN, 7]), item([1, 5, 6, 7, 8])])
    pad = TOKENIZER.pad_token_id
    assert pad == UNKNOWN  # as in LLaVA: a mask of what is not padding would hide the word, too
    assert batch["input_ids"].tolist() == [[1, UNKNOWN, 7, pad, pad], [1, 5, 6, 7, 8]]
    assert batch["labels"].tolist() == [[-100, UNKNOWN, 7, -100, -100], [-100, 5, 6, 7, 8]]
    assert batch["attention_mask"].tolist() == [[True] * 3 + [False] * 2, [True] * 5]
    assert batch["attention_mask"].dtype == torch.bool
    assert "images" not in batch
    assert "packs" not in batch


def test_images_of_one_shape_are_stacked_others_listed_in_order():
    one, two = item([1, IMAGE_TOKEN_INDEX, 5], [SMALL], 4), item([1, 5])
    three = item([1, IMAGE_TOKEN_INDEX, IMAGE_TOKEN_INDEX, 6], [2 * SMALL, WIDE], 12)
    batch = COLLATE([one, two])
    assert torch.equal(batch["images"], SMALL[None])
    batch = COLLATE([three, two, one])
    assert [torch.equal(*pair) for pair in zip(batch["images"], [2 * SMALL, WIDE, SMALL], strict=True)] == [True] * 3


def test_samples_left_out_are_only_counted():
    skipped = Skipped("samples.json: sample 3: too long", is_bad=False)
    batch = COLLATE([{"skipped": skipped}, item([1, IMAGE_TOKEN_INDEX, 5], [SMALL], 4), item([1, 5, 6, 7])])
    assert batch["input_ids"].shape == (2, 4)
    assert batch["counts"] == BatchCounts(
        samples=2, text_tokens=6, visual_tokens=4, target_tokens=4, padded_tokens=12, skipped=(skipped,)
    )


@pytest.mark.parametrize("pack", [None, 10])
def test_a_batch_without_samples_is_one_token_that_is_not_trained_on(pack):
    skipped = Skipped("a", is_bad=True)
    batch = DataCollatorForSupervisedDataset(TOKENIZER, pack)([{"skipped": skipped}])
    assert batch["labels"].tolist() == [[-100]]
    assert batch["attention_mask"].tolist() == [[True]]
    assert batch["input_ids"].shape == (1, 1)
    assert batch["counts"].skipped == (skipped,)
    assert "images" not in batch
    assert pack is None or batch["packs"].tolist() == [0]


def test_packed_samples_share_rows():
    samples = [item([1] * 3), item([1, IMAGE_TOKEN_INDEX, 5], [SMALL], 6), item([1] * 6)]
    batch = DataCollatorForSupervisedDataset(TOKENIZER, pack=10)(samples)
    assert batch["packs"].tolist() == assign_rows([3, 8, 6], 10)
    assert batch["packs"].dtype == torch.int64
    assert batch["input_ids"].shape == (3, 6)
    assert batch["counts"].padded_tokens == 2 * 9


def test_batches_from_a_worker_are_the_same_and_keep_few_files_open(tmp_path):
    generator = np.random.default_rng(0)
    values = []
    for i, size in enumerate([(56, 84), (140, 56), (56, 56)]):
        Image.fromarray(generator.integers(0, 255, (*size, 3), dtype=np.uint8)).save(tmp_path / f"{i}.png")
        values.append({"image": f"{i}.png", "conversations": talk("<image>\nWhat?", f"a red {i}")})
    (tmp_path / "samples.json").write_text(json.dumps(values))
    arguments = DataArguments(image_folder=str(tmp_path), is_multimodal=True)
    settings = QLIPConfig(max_tokens=30)
    arguments.preparer = Preparer(ImageCutter(14, 56), settings, None, native_tokens=16)
    arguments.template = conv_templates["v1"]
    dataset = LazySupervisedDataset(tmp_path / "samples.json", TOKENIZER, arguments)

    here, there = (next(iter(DataLoader(dataset, 3, collate_fn=COLLATE, num_workers=workers))) for workers in (0, 1))
    assert torch.equal(here["labels"], there["labels"])
    assert here["counts"] == there["counts"]
    for one, other in zip(here["images"], there["images"], strict=True):
        assert one.leaves.grid == other.leaves.grid
        assert torch.equal(one.leaves.boxes, other.leaves.boxes)
        assert torch.equal(one.patches, other.patches)
    assert len({cut.patches.untyped_storage().data_ptr() for cut in there["images"]}) == 1
    assert len({cut.leaves.boxes.untyped_storage().data_ptr() for cut in there["images"]}) == 1
