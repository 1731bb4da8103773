"""Mesoscopic and interpolation bias: how much a tower's embedding of an image depends on its size (paper section 3).

E(N) is the tower's pooled output for an image at size N: [CLS] after the last norm; in SigLIP the output of its
attention head. The reference is E of the same image at the tower's native size, on the uniform grid. Both biases are
made from the cosine of E(N) and the reference:

- Mesoscopic bias: the cosine when all position embeddings, [CLS]'s too, are zero in both. 1 is best.
- Interpolation bias: with positions in use, the L2 norm of the cosine's gradient by P, the position embeddings that
  are added to the patch tokens at size N. 0 is best. [CLS]'s own is not in P, as it is never interpolated. With more
  tokens each counts less, and the norm is smaller: compare modes at one number of tokens, not sizes with each other.

This is the convention "ours", whose reference has the image's own shape. The convention "authors", that of the
authors' released code, differs in three points: E is CLIP's image embedding, the pooled output after
`visual_projection`; P has [CLS]'s row as well; and the reference is the image's central square, whatever the shape. A
cosine does not depend on the embedding's length.

The uniform grid and the reference have the paper's settings, whatever the tower's own are; a quadtree has its own.

Images are measured one at a time, so the largest size bounds memory.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import astuple, dataclass, replace

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from qlip.config import Interpolation, QLIPConfig
from qlip.encoder import QLIPVisionModel
from qlip.image_processing import QLIPImageProcessor
from qlip.images.pictures import crop_square
from qlip.images.rgb import to_rgb
from qlip.positions import interpolate_positions
from qlip.prior.config import Shape
from qlip.quadtree import Leaves, find_grid, partition_as
from qlip.tools.bias_config import UNIFORM, BiasConfig, Mode
from qlip.tools.intervals import mean_interval

Cell = tuple[str, str, str, str | None, int]  # the first five fields of a Row


@dataclass(frozen=True)
class Row:
    """One mean over images."""

    measure: str  # "mesoscopic" or "interpolation"
    shape: str  # "native" or "cropped"
    tiling: str  # "uniform" or "quadtree"
    mode: str | None  # None for mesoscopic bias: without positions there is nothing to interpolate
    size: int  # shorter side in pixels
    tokens: float  # mean number of patch tokens
    mean: float
    low: float  # of the mean's 95 % interval
    high: float
    count: int  # images


def default_sizes(native_grid: int, patch_size: int) -> tuple[int, ...]:
    """Computes the paper's sizes 224 + 28 k, k = 0 .. 21, for 336 px; the same multiples of other native sizes.

    Args:
        native_grid: n, cells per side of the native image.
        patch_size: P, pixels per side of a cell; sizes are rounded to whole cells, rising, each once.
    """
    cells = {max(1, round((224 + 28 * k) * native_grid / 336)) for k in range(22)}
    return tuple(count * patch_size for count in sorted(cells))


def embed(
    model: QLIPVisionModel,
    image: Tensor,
    leaves: Leaves,
    positions: Tensor,
    projection: nn.Linear | None = None,
    settings: QLIPConfig = UNIFORM,
) -> Tensor:
    """Computes E (D,) of an image (3, H, W): the pooled output, projected if there is a projection.

    `positions` ([CLS] +) N, D are as in `encode`; the settings resample leaves and weigh them.
    """
    settings = replace(settings, thumbnail=False)  # its tokens are not pooled
    pooled = model.encode([image], [leaves], [positions], pool=True, settings=settings).pooled
    if pooled is None:
        raise TypeError(f"{type(model).__name__} has no pooled output")
    return pooled[0] if projection is None else projection(pooled[0])


@torch.no_grad()
def embed_without_positions(
    model: QLIPVisionModel,
    image: Tensor,
    leaves: Leaves,
    projection: nn.Linear | None = None,
    settings: QLIPConfig = UNIFORM,
) -> Tensor:
    """Computes E with all position embeddings, [CLS]'s too, set to zero; see `embed`."""
    cls = model.cls_position
    return embed(model, image, leaves, cls.new_zeros(len(cls) + len(leaves), cls.shape[1]), projection, settings)


def mesoscopic_bias(
    model: QLIPVisionModel,
    image: Tensor,
    leaves: Leaves,
    reference: Tensor,
    projection: nn.Linear | None = None,
    settings: QLIPConfig = UNIFORM,
) -> float:
    """Computes the cosine of E(image) without positions to a reference (paper section 3); 1 is best.

    Args:
        model: the tower, in eval mode.
        image: float (3, H, W), normalised.
        leaves: N leaves of the image.
        reference: (D,), from `embed_without_positions`: the same image at the native size.
        projection: CLIP's `visual_projection` in the authors' convention, for the reference, too.
        settings: of the leaves.
    """
    embedding = embed_without_positions(model, image, leaves, projection, settings)
    return float(F.cosine_similarity(embedding, reference, dim=0))


def interpolation_bias(
    model: QLIPVisionModel,
    image: Tensor,
    leaves: Leaves,
    positions: Tensor,
    reference: Tensor,
    projection: nn.Linear | None = None,
    by_cls: bool = False,
    settings: QLIPConfig = UNIFORM,
) -> float:
    """Computes || grad_P cos(E(image), reference) ||_2 over all entries of P (paper section 3); 0 is best.

    Args:
        model: the tower, in eval mode. Frozen parameters save memory.
        image: float (3, H, W), normalised.
        leaves: N leaves of the image.
        positions: P, float (N, D), the embeddings added to the patch tokens; [CLS] has its own.
        reference: (D,), from `embed`: the same image at the native size; a constant.
        projection: CLIP's `visual_projection` in the authors' convention, for the reference, too.
        by_cls: [CLS]'s own position embedding belongs to P, as in the authors' convention.
        settings: of the leaves.
    """
    cls = model.cls_position.detach().requires_grad_(by_cls)
    added = positions.detach().requires_grad_()
    with torch.enable_grad():
        embedding = embed(model, image, leaves, torch.cat([cls, added]), projection, settings)
        cosine = F.cosine_similarity(embedding, reference.detach(), dim=0)
        gradients = torch.autograd.grad(cosine, [cls, added] if by_cls else [added])
    return float(torch.cat([gradient.flatten() for gradient in gradients]).norm())


@torch.no_grad()
def place_leaves(model: QLIPVisionModel, leaves: Leaves, mode: Mode, settings: QLIPConfig = UNIFORM) -> Tensor:
    """Computes position embeddings of leaves, float32 (N, D), without [CLS], where the settings place them.

    Raises:
        ValueError: the mode lacks its prior.
    """
    interpolation: Interpolation = "mlp" if mode == "mlp-pure" else mode
    table = model.position_table
    prior = None if model.prior is None else model.prior.to(table.device)
    residual = mode != "mlp-pure"
    return interpolate_positions(
        table, leaves, interpolation, prior, settings.leaf_position, residual, settings.placement
    )


def measure(
    model: QLIPVisionModel,
    processor: QLIPImageProcessor,
    pictures: Iterable[Image.Image],
    config: BiasConfig,
    projection: nn.Linear | None = None,
) -> list[Row]:
    """Measures both biases, each a mean over images, by shape, size, tiling and mode.

    Args:
        model: the tower, in eval mode, with its prior if a mode needs one.
        processor: its mean and standard deviation normalise the images.
        pictures: Pillow images of any mode and size. Those smaller than a size are enlarged to it; those that would
            exceed `QLIPConfig.max_cells` are shrunk.
        config: what is measured.
        projection: CLIP's `visual_projection`, for the authors' convention.

    Raises:
        ValueError: no images; a size that is not whole cells, or too large; a mode without its prior; a budget below
            the coarsest tree; the authors' convention without a projection.
    """
    if (config.convention == "authors") != (projection is not None):
        raise ValueError(
            f"convention is {config.convention!r}, and there is {'no' if projection is None else 'a'} projection;"
            " 'authors' needs CLIP's visual_projection, 'ours' takes none"
        )
    if model.prior is None and any(mode.startswith("mlp") for mode in config.modes):
        raise ValueError(f"modes are {config.modes}, but the tower has no MLP prior")
    processors = {size: _make_resizer(model, processor, size) for size in choose_sizes(model, config)}
    at_native = _make_resizer(model, processor, model.native_grid * model.config.patch_size)
    values: dict[Cell, list[float]] = defaultdict(list)
    counts: dict[Cell, list[int]] = defaultdict(list)
    for picture in map(to_rgb, pictures):
        for shape in config.shapes:
            view = crop_square(picture) if shape == "cropped" else picture
            for cell, count, value in _measure_view(model, at_native, processors, view, shape, config, projection):
                values[cell].append(value)
                counts[cell].append(count)
    if not values:
        raise ValueError("there are no images to measure")
    return [Row(*cell, sum(counts[cell]) / len(counts[cell]), *astuple(mean_interval(values[cell]))) for cell in values]


def choose_sizes(model: QLIPVisionModel, config: BiasConfig) -> list[int]:
    """Chooses the sizes in pixels, rising, each once. ValueError if one is not whole cells, or too large."""
    patch_size = model.config.patch_size
    sizes = config.sizes or default_sizes(model.native_grid, patch_size)
    largest = int(QLIPConfig().max_cells ** 0.5) * patch_size
    for size in sizes:
        if size % patch_size or size > largest:
            raise ValueError(f"size {size} is not allowed; multiples of {patch_size} up to {largest} are")
    return sorted(set(sizes))


def _measure_view(
    model: QLIPVisionModel,
    at_native: QLIPImageProcessor,
    processors: Mapping[int, QLIPImageProcessor],
    view: Image.Image,
    shape: Shape,
    config: BiasConfig,
    projection: nn.Linear | None,
) -> Iterator[tuple[Cell, int, float]]:
    """Yields cell, number of patch tokens and value for both measures of one image in one shape."""
    device, patch_size = model.position_table.device, model.config.patch_size
    authors = config.convention == "authors"

    def prepare(picture: Image.Image, processor: QLIPImageProcessor) -> tuple[Tensor, Leaves]:
        image = processor.preprocess(picture, return_tensors="pt")["pixel_values"][0].to(device)
        return image, Leaves.uniform(find_grid(image, patch_size))

    image, uniform = prepare(crop_square(view) if authors else view, at_native)
    bare = embed_without_positions(model, image, uniform, projection)
    with torch.no_grad():
        positions = torch.cat([model.cls_position, place_leaves(model, uniform, "bicubic")])
        reference = embed(model, image, uniform, positions, projection)
    for size, processor in processors.items():
        image, uniform = prepare(view, processor)
        trees = {"uniform": (uniform, UNIFORM)}
        if (own := config.quadtree) is not None:
            trees["quadtree"] = (partition_as(own, image, patch_size, model.native_grid), own)
        for tiling, (leaves, settings) in trees.items():
            value = mesoscopic_bias(model, image, leaves, bare, projection, settings)
            yield ("mesoscopic", shape, tiling, None, size), len(leaves), value
            for mode in config.modes:
                positions = place_leaves(model, leaves, mode, settings)
                value = interpolation_bias(
                    model, image, leaves, positions, reference, projection, by_cls=authors, settings=settings
                )
                yield ("interpolation", shape, tiling, mode, size), len(leaves), value


def _make_resizer(model: QLIPVisionModel, processor: QLIPImageProcessor, size: int) -> QLIPImageProcessor:
    """Makes a processor that resizes the shorter side to `size` pixels and keeps the aspect ratio, in whole cells."""
    settings = QLIPConfig.paper(alpha=0.0, image_size=size)
    mean, std = processor.image_mean, processor.image_std
    return QLIPImageProcessor(model.config.patch_size, model.config.image_size, mean, std, settings)
