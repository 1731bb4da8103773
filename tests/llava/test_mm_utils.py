"""Images and prompts become tensors as LLaVA's checkpoints expect them."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPImageProcessorPil, SiglipImageProcessorPil

from llava import mm_utils
from llava.constants import IMAGE_TOKEN_INDEX
from qlip import QLIPImageProcessor
from tests.llava.serve.fakes import BytesTokenizer
from tests.llava.test_image_geometry import gradient

ANYRES = {"image_aspect_ratio": "anyres", "image_grid_pinpoints": [(28, 56), (56, 28), (56, 56)]}


class NoBosTokenizer(BytesTokenizer):
    bos_token_id = None


@pytest.fixture
def processor() -> CLIPImageProcessorPil:
    return CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})


def clip(processor: CLIPImageProcessorPil, *images: Image.Image) -> torch.Tensor:
    return processor(list(images), return_tensors="pt")["pixel_values"]


# Image tokens in prompts


@pytest.mark.parametrize(
    ("prompt", "pieces"),
    [
        ("ab", ["ab"]),
        ("a<image>b", ["a", "b"]),
        ("<image>\nHi", ["", "\nHi"]),
        ("<image><image>", ["", "", ""]),
        ("a<image>b<image>c", ["a", "b", "c"]),
    ],
)
@pytest.mark.parametrize("tokenizer", [BytesTokenizer(), NoBosTokenizer()])
def test_each_image_token_is_between_the_texts_around_it(
    prompt: str, pieces: list[str], tokenizer: BytesTokenizer
) -> None:
    expected = [] if tokenizer.bos_token_id is None else [1]
    for i, piece in enumerate(pieces):
        expected += ([IMAGE_TOKEN_INDEX] if i else []) + tokenizer.bytes(piece)
    assert mm_utils.tokenizer_image_token(prompt, tokenizer) == expected
    tensor = mm_utils.tokenizer_image_token(prompt, tokenizer, return_tensors="pt")
    assert tensor.dtype == torch.int64
    assert tensor.tolist() == expected


def test_another_index_may_mark_images() -> None:
    assert mm_utils.tokenizer_image_token("<image>", BytesTokenizer(), image_token_index=7) == [1, 7]


def test_only_torch_tensors_are_offered() -> None:
    with pytest.raises(ValueError, match="must be None or 'pt', got 'np'"):
        mm_utils.tokenizer_image_token("a", BytesTokenizer(), return_tensors="np")


# Image preparation


def test_pad_equals_clips_processor_on_a_square_of_its_mean_colour(processor: CLIPImageProcessorPil) -> None:
    wide = gradient(40, 20)
    square = Image.new("RGB", (40, 40), tuple(int(255 * mean) for mean in processor.image_mean))
    square.paste(wide, (0, 10))
    pixels = mm_utils.process_images([wide], processor, Namespace(image_aspect_ratio="pad"))
    assert torch.equal(pixels, clip(processor, square))


@pytest.mark.parametrize(
    "config", [Namespace(), Namespace(image_aspect_ratio=None), Namespace(image_aspect_ratio="square")]
)
def test_without_a_padding_rule_clips_processor_decides(processor: CLIPImageProcessorPil, config: Namespace) -> None:
    images = [gradient(40, 20), gradient(30, 50)]
    assert torch.equal(mm_utils.process_images(images, processor, config), clip(processor, *images))


@pytest.mark.parametrize("mode", ["L", "RGBA", "P"])
def test_pad_takes_pictures_of_any_mode(processor: CLIPImageProcessorPil, mode: str) -> None:
    image = gradient(40, 20, mode)
    config = Namespace(image_aspect_ratio="pad")
    expected = mm_utils.process_images([image.convert("RGB")], processor, config)
    assert torch.equal(mm_utils.process_images([image], processor, config), expected)


@pytest.mark.parametrize(
    ("settings", "qlip"),
    [
        ({}, None),
        ({"image_aspect_ratio": "pad"}, None),
        (ANYRES, None),
        ({"image_aspect_ratio": "pad"}, {}),
        (ANYRES, {}),
        (ANYRES, {"tiling": "tiles"}),
    ],
    ids=["square", "pad", "tiles", "quadtree", "quadtree for tiles", "quadtrees in tiles"],
)
def test_every_way_sees_a_picture_as_its_size_says(
    processor: CLIPImageProcessorPil, settings: dict[str, object], qlip: dict[str, object] | None
) -> None:
    """LLaVA's clients pass `image.size` as `image_sizes`, so that nothing is turned behind their backs."""
    own = processor if qlip is None else QLIPImageProcessor(14, 28, qlip=qlip)
    turned = gradient(60, 20)
    exif = Image.Exif()
    exif[0x0112] = 6
    turned.info["exif"] = exif.tobytes()
    levels = np.arange(60 * 20, dtype=np.uint16).reshape(20, 60) % 256
    pairs = [
        (turned, gradient(60, 20)),
        (Image.fromarray(levels * 257), Image.fromarray(levels.astype(np.uint8)).convert("RGB")),
        (Image.new("RGBA", (60, 20), (255, 0, 0, 0)), Image.new("RGB", (60, 20), "white")),
        (np.asarray(gradient(60, 20)), gradient(60, 20)),
    ]
    for given, same in pairs:
        pixels = mm_utils.process_images([given], own, settings)
        assert torch.equal(pixels, mm_utils.process_images([same], own, Namespace(**settings)))
    assert "exif" in turned.info


@pytest.mark.parametrize("settings", [{}, {"image_aspect_ratio": "pad"}, ANYRES], ids=["square", "pad", "tiles"])
def test_what_is_no_image_is_refused_with_the_way_out(
    processor: CLIPImageProcessorPil, settings: dict[str, object]
) -> None:
    with pytest.raises(TypeError, match=r"images\[1\] is a str; open it with llava.images.load_image"):
        mm_utils.process_images([gradient(4, 4), "a.png"], processor, settings)
    with pytest.raises(TypeError, match="image_processor is None, as that of a text-only model is"):
        mm_utils.process_images([gradient(4, 4)], None, settings)
    for one in (gradient(4, 4), np.asarray(gradient(4, 4)), "a.png"):
        with pytest.raises(TypeError, match=r"it must be a list: process_images\(\[image\], ...\)"):
            mm_utils.process_images(one, processor, settings)


@pytest.mark.parametrize("scale", [np.int64, np.float32], ids=["integers", "floats up to 255"])
def test_a_processor_in_its_own_way_takes_arrays_of_its_own(processor: CLIPImageProcessorPil, scale: type) -> None:
    levels = np.asarray(gradient(40, 30)).astype(scale)
    expected = processor.preprocess(levels, return_tensors="pt")["pixel_values"]
    assert torch.equal(mm_utils.process_images([levels], processor, {}), expected)


class NativeProcessor:
    """Keeps every picture's size, as a quadtree tower wants it."""

    keeps_aspect_ratio = True

    def preprocess(self, image: Image.Image, return_tensors: str) -> dict[str, torch.Tensor]:
        assert return_tensors == "pt"
        return {"pixel_values": torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float()}


def test_a_processor_that_keeps_the_shape_gets_unpadded_pictures() -> None:
    config = Namespace(image_aspect_ratio="pad")
    alone = mm_utils.process_images([gradient(40, 20)], NativeProcessor(), config)
    assert isinstance(alone, torch.Tensor)
    assert alone.shape == (1, 3, 20, 40)
    mixed = mm_utils.process_images([gradient(40, 20), gradient(20, 20)], NativeProcessor(), config)
    assert [tuple(pixels.shape) for pixels in mixed] == [(3, 20, 40), (3, 20, 20)]


def test_pictures_of_several_sizes_are_converted_as_one_tensor_is() -> None:
    """VLMEvalKit calls `.to()` on whatever it gets; lmms-eval and LLaVA's scripts look whether it is a bare list."""
    sizes = [gradient(40, 20), gradient(20, 20)]
    mixed = mm_utils.process_images(sizes, NativeProcessor(), Namespace(image_aspect_ratio="pad"))
    assert isinstance(mixed, list) and type(mixed) is not list
    for moved in (mixed.to("cpu", dtype=torch.float16), mixed.to(torch.device("cpu")).half()):
        assert [(tuple(image.shape), image.dtype) for image in moved] == [
            ((3, 20, 40), torch.float16),
            ((3, 20, 20), torch.float16),
        ]
        for image, original in zip(moved, mixed, strict=True):
            assert torch.equal(image, original.half())


@pytest.mark.parametrize("pinpoints", [[(28, 56), (56, 28), (56, 56)], "[(28, 56), (56, 28), (56, 56)]"])
def test_anyres_gives_the_whole_picture_and_its_tiles(processor: CLIPImageProcessorPil, pinpoints: object) -> None:
    image = gradient(56, 28)
    config = Namespace(image_aspect_ratio="anyres", image_grid_pinpoints=pinpoints)
    expected = clip(processor, image.resize((28, 28)), image.crop((0, 0, 28, 28)), image.crop((28, 0, 56, 28)))
    assert torch.equal(mm_utils.process_images([image], processor, config), expected[None])
    assert mm_utils.get_anyres_image_grid_shape(image.size, pinpoints, 28) == (2, 1)


def test_anyres_cuts_tiles_of_siglips_size_too() -> None:
    """Its processor resizes to a square and crops nothing; LLaVA-NeXT counts the resolutions in tiles."""
    siglip = SiglipImageProcessorPil(size={"height": 28, "width": 28})
    image = gradient(28, 56)
    config = Namespace(image_aspect_ratio="anyres_max_9", image_grid_pinpoints="(1x1),...,(2x2)")
    expected = clip(siglip, image.resize((28, 28)), image.crop((0, 0, 28, 28)), image.crop((0, 28, 28, 56)))
    assert torch.equal(mm_utils.process_images([image], siglip, config), expected[None])


def test_base64_text_opens_as_the_picture_it_encodes() -> None:
    image = gradient(12, 8)
    opened = mm_utils.load_image_from_base64(mm_utils.encode_image_to_base64(image, "PNG"))
    assert opened.mode == "RGB"
    assert opened.tobytes() == image.tobytes()


# Names


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("liuhaotian/llava-v1.5-7b", "llava-v1.5-7b"),
        ("/models/llava-v1.5-7b/", "llava-v1.5-7b"),
        ("/models/my-llava/checkpoint-500", "my-llava_checkpoint-500"),
        ("checkpoint-500", "checkpoint-500"),
        ("/hub/models--liuhaotian--llava-v1.6-34b/snapshots/0a1b2c/", "llava-v1.6-34b"),
        ("/hub/models--gpt2/snapshots/0a1b2c", "gpt2"),
        ("/models/snapshots/0a1b2c", "0a1b2c"),
        (r"C:\models\llama-3\vicuna-7b", "vicuna-7b"),
    ],
)
def test_a_models_name_is_its_last_folder(path: str, name: str) -> None:
    assert mm_utils.get_model_name_from_path(path) == name


def test_the_working_directory_has_its_own_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "llava-v1.6-34b" / "sub").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "llava-v1.6-34b")
    for path in (".", "./", "sub/..", str(tmp_path / "llava-v1.6-34b" / ".")):
        assert mm_utils.get_model_name_from_path(path) == "llava-v1.6-34b"
