"""Where tokens stand among text: the vectorised placement against a loop over tokens, and the biased mask."""

from __future__ import annotations

import pytest
import torch

from qlip.language_positions import ImageSpan, key_bias, place_batch, place_tokens


def span(count: int, positions: list[float] | None = None, of: int | None = None, size: float | None = None):
    places = None if positions is None else torch.tensor(positions)
    return ImageSpan(
        count, places, of if of is not None else count, None if size is None else torch.full((count,), size)
    )


def one_by_one(is_image: list[bool], images: list[ImageSpan]) -> tuple[list[float], list[float], int]:
    """The definition, token by token."""
    positions, sizes, now, queue, used = [], [], 0, list(images), 0
    for flag in is_image:
        if not flag:
            positions.append(now)
            sizes.append(1.0)
            now += 1
            continue
        image = queue[0]
        positions.append(now + (used if image.positions is None else float(image.positions[used])))
        sizes.append(1.0 if image.sizes is None else float(image.sizes[used]))
        used += 1
        if used == image.count:
            now, used = now + image.length, 0
            queue.pop(0)
    return positions, sizes, now


RASTER = span(3, [0.0, 2.5, 8.0], of=9, size=2.0)
PROMPTS = {
    "text only": ("ttt", []),
    "one image": ("ttiiit", [RASTER]),
    "counted": ("tiiit", [span(3)]),
    "side by side": ("iiiiit", [span(2, [0.0, 8.0], of=9), RASTER]),
    "image at the end": ("tiii", [RASTER]),
    "mixed": ("tiitiiit", [span(2), RASTER]),
}


@pytest.mark.parametrize(("prompt", "images"), PROMPTS.values(), ids=PROMPTS.keys())
def test_places_are_those_counted_token_by_token(prompt, images):
    flags = [letter == "i" for letter in prompt]
    placed = place_tokens(torch.tensor(flags), images)
    positions, sizes, end = one_by_one(flags, images)
    assert placed.positions.tolist() == positions
    assert placed.sizes.tolist() == sizes
    assert int(placed.end) == end
    assert placed.positions.is_floating_point() == any(image.positions is not None for image in images)


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_padded_batch_is_placed_as_its_rows_alone(side):
    rows = [PROMPTS[name] for name in ("one image", "side by side", "text only", "mixed")]
    flags = [torch.tensor([letter == "i" for letter in prompt]) for prompt, _ in rows]
    real = [torch.ones_like(row) for row in flags]
    together = place_batch(
        *(torch.nn.utils.rnn.pad_sequence(x, True, False, side) for x in (flags, real)),
        [image for _, images in rows for image in images],
    )
    mask = torch.nn.utils.rnn.pad_sequence(real, True, False, side)
    for index, (row, (_, images)) in enumerate(zip(flags, rows, strict=True)):
        alone = place_tokens(row, images)
        assert torch.equal(together.positions[index][mask[index]], alone.positions.float())
        assert torch.equal(together.sizes[index][mask[index]], alone.sizes)
        assert together.end[index] == alone.end
    assert (together.positions[~mask] == 0).all()


def test_tokens_and_images_that_do_not_match_are_an_error():
    flags = torch.tensor([False, True, True, True])
    with pytest.raises(ValueError, match="holds 3 image tokens, and its images \\(1\\) have 2"):
        place_tokens(flags, [span(2)])
    with pytest.raises(ValueError, match="there is text between"):
        place_tokens(torch.tensor([True, False, True, True]), [span(2), span(1)])
    with pytest.raises(ValueError, match="2 images were given, 1 more than"):
        place_batch(flags[None], torch.ones_like(flags)[None], [span(3), span(2)])


def test_a_bias_needs_an_attention_that_takes_it():
    assert key_bias(torch.ones(1, 3), "flash_attention_2") is None
    assert torch.equal(key_bias(torch.tensor([[1.0, 2.0]]), "sdpa"), 2 * torch.tensor([[1.0, 2.0]]).log())
    with pytest.raises(ValueError, match="'flash_attention_2' can't apply"):
        key_bias(torch.tensor([[1.0, 2.0]]), "flash_attention_2")


def test_an_image_without_any_of_its_tokens_has_no_place() -> None:
    with pytest.raises(ValueError, match="all 4 tokens of the image are left out; at least one must stay"):
        ImageSpan.sequential(4).select(torch.zeros(4, dtype=torch.bool))
