"""Draws the features of leaves on the image: `python -m scripts.examples.feature_map IMAGE OUT.png`."""

import torch
from PIL import Image
from transformers import AutoModel

import qlip
from qlip.images.rgb import to_rgb
from scripts.examples import run


def main(picture: str, out: str, model_path: str = "facebook/dinov2-base") -> None:
    image = to_rgb(Image.open(picture))
    model, processor = qlip.attach(AutoModel.from_pretrained(model_path), alpha=0.5)
    with torch.inference_mode():
        output = model(**processor.pack([image]))
    features = output.feature_maps()[0].permute(1, 2, 0)  # (rows, cols, D)
    colours = features @ torch.pca_lowrank(features.flatten(0, 1), q=3)[2]  # the three directions that vary most
    shades = ((colours - colours.mean((0, 1))) / colours.std((0, 1)) / 4 + 0.5).clamp(0, 1)
    tint = Image.fromarray((255 * shades).byte().numpy()).resize(image.size, Image.Resampling.NEAREST)
    qlip.draw_leaves(Image.blend(image, tint, 0.6), output.leaves[0]).save(out)


if __name__ == "__main__":
    run(main)
