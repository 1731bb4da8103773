"""Asks a LLaVA of transformers: `python -m scripts.examples.transformers_chat IMAGE QUESTION`."""

from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

import qlip
from scripts.examples import run


def main(picture: str, question: str, model_path: str = "llava-hf/llava-1.5-7b-hf") -> None:
    image = Image.open(picture)
    model = AutoModelForImageTextToText.from_pretrained(model_path, dtype="auto", device_map="auto")
    model, processor = qlip.attach(model, AutoProcessor.from_pretrained(model_path), max_tokens=1152)
    content = [{"type": "image", "image": image}, {"type": "text", "text": question}]
    options = {"add_generation_prompt": True, "tokenize": True, "return_dict": True, "return_tensors": "pt"}
    inputs = processor.apply_chat_template([{"role": "user", "content": content}], **options)
    answer = model.generate(**inputs.to(model.device, model.dtype), max_new_tokens=128)
    print(processor.decode(answer[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))


if __name__ == "__main__":
    run(main)
