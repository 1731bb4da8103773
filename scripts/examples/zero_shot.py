"""Zero-shot classification at native resolution: `python -m scripts.examples.zero_shot IMAGE "a cat" "a dog"`."""

import torch
from PIL import Image
from transformers import AutoProcessor, CLIPModel

import qlip
from scripts.examples import check_text_half, run


def main(picture: str, *labels: str, model_path: str = "openai/clip-vit-large-patch14-336") -> None:
    image = Image.open(picture)
    check_text_half(model_path)
    processor = AutoProcessor.from_pretrained(model_path)
    model, processor = qlip.attach(CLIPModel.from_pretrained(model_path), processor, coarsest="any", max_tokens=576)
    inputs = processor(images=image, text=list(labels), return_tensors="pt", padding=True)
    with torch.inference_mode():
        shares = model(**inputs).logits_per_image[0].softmax(0)
    for share, label in sorted(zip(shares.tolist(), labels, strict=True), reverse=True):
        print(f"{share:.3f} {label}")


if __name__ == "__main__":
    run(main)
