"""The data set of training: samples with their images, token ids and labels."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from llava import conversation
from llava.constants import (
    DEFAULT_IM_END_TOKEN,
    DEFAULT_IM_START_TOKEN,
    DEFAULT_IMAGE_TOKEN,
    IGNORE_INDEX,
    IMAGE_TOKEN_INDEX,
)
from llava.conversation import Conversation
from llava.model.vision.prepared_image import PreparedImage
from llava.model.vision.preparer import Preparer, Unreadable
from llava.train.data.collator import DataCollatorForSupervisedDataset
from llava.train.data.image_files import make_finder
from llava.train.data.labels import Turn, encode_conversation
from llava.train.data.sample import Sample
from llava.train.data.samples import open_samples
from llava.train.left_out import Skipped

IMAGE_WORDS = 128
"""What an image adds to `LazySupervisedDataset.lengths`; LLaVA's number."""

PATCH_SIZE = 14
"""Patch size of LLaVA's towers; counts the tokens of an image where only an image processor is known."""


def preprocess_multimodal(sources: Sequence[Sequence[Turn]], data_args: Any, images: int = 1) -> list[list[Turn]]:
    """Moves the `<image>` tags of conversations to where the template has them.

    A turn's tag moves to its front, followed by a line break; several are one. Only in a sample of several images a
    turn with several tags keeps them where they are.

    Args:
        sources: conversations; they are not changed.
        data_args: `is_multimodal`, False returns the conversations as they are; `mm_use_im_start_end`; `template`, by
            default `llava.conversation.default_conversation`.
        images: how many the sample has.
    """
    if not data_args.is_multimodal:
        return [list(turns) for turns in sources]
    template = _template(data_args)
    wrapped = DEFAULT_IMAGE_TOKEN
    if getattr(data_args, "mm_use_im_start_end", False):
        wrapped = f"{DEFAULT_IM_START_TOKEN}{wrapped}{DEFAULT_IM_END_TOKEN}"
    if "mmtag" in template.version:
        wrapped = f"<Image>{wrapped}</Image>"

    def place(text: str) -> str:
        tags = text.count(DEFAULT_IMAGE_TOKEN)
        if tags == 1 or (tags and images == 1):
            rest = text.replace(DEFAULT_IMAGE_TOKEN, "").strip()
            text = f"{DEFAULT_IMAGE_TOKEN}\n{rest}".strip()
        return text.replace(DEFAULT_IMAGE_TOKEN, wrapped)

    return [[{**turn, "value": place(turn["value"])} for turn in turns] for turns in sources]


def preprocess(
    sources: Sequence[Sequence[Turn]], tokenizer: Any, has_image: bool = False, template: Conversation | None = None
) -> dict[str, list[Tensor]]:
    """Tokenizes conversations and labels their answers, see `llava.train.data.labels`.

    Args:
        sources: conversations; a first answer without a question is dropped.
        tokenizer: of the model.
        has_image: whether `<image>` marks an image; otherwise it is text.
        template: by default `llava.conversation.default_conversation`.

    Returns:
        `input_ids` and `labels`, each with an int64 (L,) per conversation.
    """
    template = conversation.default_conversation if template is None else template
    encoded = []
    for turns in sources:
        asked = turns[1:] if turns and turns[0]["from"] == "gpt" else turns
        encoded.append(encode_conversation(asked, template, tokenizer, has_image))
    return {
        "input_ids": [torch.from_numpy(one.input_ids) for one in encoded],
        "labels": [torch.from_numpy(one.labels) for one in encoded],
    }


class LazySupervisedDataset(Dataset):
    """Samples of a file or folder, each read and prepared when it is asked for. Can be sent to worker processes."""

    def __init__(self, data_path: str | Path, tokenizer: Any, data_args: Any) -> None:
        """
        Args:
            data_path: see `llava.train.data.samples.open_samples`.
            tokenizer: of the model.
            data_args: LLaVA's `is_multimodal`, `image_folder`, `image_processor`, `image_aspect_ratio` and
                `mm_use_im_start_end`; and, where it has them, `image_grid_pinpoints`, `mm_patch_merge_type`,
                `preparer` (a `Preparer`, by default made from the image
                processor), `template` (by default `llava.conversation.default_conversation`), `max_length` (text and
                visual tokens, by default the tokenizer's `model_max_length`) and `max_bad_samples`.

        Raises:
            FileNotFoundError, ValueError: see `open_samples`, whose images are looked for in the image folder; or
                samples have images, and the model has no tower, or there is no image folder.
        """
        folder = Path(data_args.image_folder or "")
        self.samples = open_samples(
            data_path,
            getattr(data_args, "max_bad_samples", 10),
            getattr(data_args, "path_flag", "--data_path"),
            make_finder(folder) if folder.is_dir() else None,
        )
        self.tokenizer = tokenizer
        self.data_args = data_args
        self.template = _template(data_args)
        self.preparer: Any = _find_preparer(data_args)  # None only where no sample has an image
        limit = getattr(data_args, "max_length", None)
        self.max_length: int = tokenizer.model_max_length if limit is None else limit
        with_image = (self.samples.words > 0).nonzero()[0]
        if len(with_image) and self.preparer is None:
            raise ValueError(
                f"{self.where(int(with_image[0]))} has an image, but the model has no vision tower; name one with"
                " --vision_tower"
            )
        self._check_folder(with_image.tolist())

    def _check_folder(self, with_image: Sequence[int]) -> None:
        """Raises ValueError if the image folder is missing and an image is relative to it."""
        folder = Path(self.data_args.image_folder or "")
        if folder.is_dir():
            return
        if any(not Path(path).is_absolute() for index in with_image for path in self.samples[index].images):
            flag = getattr(self.data_args, "folder_flag", "--image_folder")
            raise ValueError(f"there is no image folder {folder}; name it with {flag}")

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def lengths(self) -> list[int]:
        """Words of each sample, with `IMAGE_WORDS` for its images."""
        words = self.samples.words
        return (abs(words) + IMAGE_WORDS * (words > 0)).tolist()

    @property
    def modality_lengths(self) -> list[int]:
        """Words of each sample, negative where it has no image."""
        return self.samples.words.tolist()

    def where(self, index: int) -> str:
        """Says where a sample is from: `FILE: sample 17`, counted from 0 in its file."""
        return self.samples.where(index)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Prepares a sample.

        Returns:
            `input_ids` and `labels`, int64 (L,), an image being one token; `images`, what the tower takes of each;
            `visual_tokens`, of all its images; `image_sizes`, (width, height) of each, where tiles are joined; and
            LLaVA's `image`, the pixels, where it is one that is not cut into leaves. Of a sample that cannot be used
            `skipped` alone.
        """
        sample = self.samples[index]
        images: list[PreparedImage] = []
        for path in sample.images:
            ready = self._prepare(path)
            if isinstance(ready, Unreadable):
                return {"skipped": Skipped(f"{self.where(index)}: {ready.reason}", is_bad=True, index=index)}
            images.append(ready)
        try:
            ids, labels = self._encode(sample)
        except ValueError as error:
            return {"skipped": Skipped(f"{self.where(index)}: {error}", is_bad=True, index=index)}
        visual = sum(image.tokens for image in images)
        keep = self._cut(ids, labels, visual)
        if isinstance(keep, str):
            return {"skipped": Skipped(f"{self.where(index)}: {keep}", is_bad=False)}
        item = {
            "input_ids": ids[:keep],
            "labels": labels[:keep],
            "images": [image.image for image in images],
            "visual_tokens": visual,
        }
        if any(image.tiles is not None for image in images):
            item["image_sizes"] = [image.image_size for image in images]
        if len(images) == 1 and isinstance(images[0].image, Tensor):
            item["image"] = images[0].image
        return item

    def _prepare(self, path: str) -> PreparedImage | Unreadable:
        file = Path(self.data_args.image_folder or "", path)
        try:
            ready = self.preparer(file)
        except (OSError, ValueError) as error:  # the image processor's own, for images of one pixel and the like
            ready = Unreadable(f"it cannot be prepared: {error}")
        if isinstance(ready, Unreadable) and str(file) not in ready.reason:
            return Unreadable(f"{file}: {ready.reason}")
        return ready

    def _encode(self, sample: Sample) -> tuple[Tensor, Tensor]:
        turns: Sequence[Turn] = sample.turns
        if sample.images:
            (turns,) = preprocess_multimodal([turns], self.data_args, len(sample.images))
        encoded = preprocess([turns], self.tokenizer, bool(sample.images), self.template)
        return encoded["input_ids"][0], encoded["labels"][0]

    def _cut(self, ids: Tensor, labels: Tensor, visual: int) -> int | str:
        """Finds how many ids fit into `max_length`; or says why nothing useful does. Images are never cut."""
        places = (ids == IMAGE_TOKEN_INDEX).nonzero()[:, 0]
        text = len(ids) - len(places)
        keep = len(ids) - max(0, text + visual - self.max_length)
        length = f"it has {text} text and {visual} visual tokens, and --model_max_length is {self.max_length}"
        if len(places) and keep <= places[-1]:
            return f"{length}, which would cut an image; raise it, or make images smaller"
        if not (labels[1 : max(keep, 1)] != IGNORE_INDEX).any():
            return f"{length}, which leaves nothing of an answer; raise it, or shorten the question"
        return keep


def _template(data_args: Any) -> Conversation:
    template = getattr(data_args, "template", None)
    return conversation.default_conversation if template is None else template


def _find_preparer(data_args: Any) -> Preparer | None:
    """Finds the preparer; makes one for forks, which set the image processor alone."""
    processor = getattr(data_args, "image_processor", None)
    preparer = getattr(data_args, "preparer", None)
    if preparer is not None or processor is None:
        return preparer
    ratio = getattr(data_args, "image_aspect_ratio", None)
    if (cutter := getattr(processor, "cutter", None)) is not None:
        return Preparer(cutter, processor.qlip, ratio, cutter.native_grid**2).by_score()
    size = getattr(processor, "crop_size", None) or processor.size
    side = size.get("height") or size["shortest_edge"]
    pinpoints = getattr(data_args, "image_grid_pinpoints", None)
    merge = getattr(data_args, "mm_patch_merge_type", None) or "flat"
    return Preparer(processor, None, ratio, (side // PATCH_SIZE) ** 2, pinpoints=pinpoints, merge=merge)


def make_supervised_data_module(tokenizer: Any, data_args: Any) -> dict[str, Any]:
    """Makes the data sets and the collator, as arguments of a trainer.

    Args:
        tokenizer: of the model.
        data_args: see `LazySupervisedDataset`; `data_path`; and, where it has them, `eval_data_path`,
            `eval_image_folder` (by default `image_folder`) and `pack`, see the collator.
    """
    held_out = None
    if (path := getattr(data_args, "eval_data_path", None)) is not None:
        own = copy.copy(data_args)
        own.path_flag = "--eval_data_path"
        if getattr(data_args, "eval_image_folder", None):
            own.image_folder, own.folder_flag = data_args.eval_image_folder, "--eval_image_folder"
        held_out = LazySupervisedDataset(path, tokenizer, own)
    return {
        "train_dataset": LazySupervisedDataset(data_args.data_path, tokenizer, data_args),
        "eval_dataset": held_out,
        "data_collator": DataCollatorForSupervisedDataset(tokenizer, getattr(data_args, "pack", None)),
    }
