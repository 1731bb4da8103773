"""Answers on a GPU: a batch gives what its rows give alone, weighted leaves too; the engine what `generate` gives."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from PIL import Image

from llava.mm_utils import tokenizer_image_token
from llava.model.builder import load_pretrained_model
from llava.serve.engine import ChatEngine
from llava.serve.engine.params import Sampling
from llava.utils import demo_model_path
from playground.scenes import PRESETS, scene
from scripts.bench.gpu.timing import count_launches
from tests.gpu.cases import BIASED, GREEDY, TREE, error, logits_of, pad_left
from tests.llava.model.prompts import IMAGES, ROWS, images_of

TREES = pytest.mark.parametrize("qlip", [TREE, BIASED, {}], ids=["tree", "biased", "defaults"])
QUESTIONS = ["What is in the picture?", "How many objects are there?", "Is there a red circle?"]


@TREES
@torch.no_grad()
def test_a_batch_answers_as_its_rows_alone(folder, device, qlip):
    model = load_pretrained_model(str(folder), device=device, torch_dtype=torch.float32, qlip=qlip)[1]
    ids, mask = pad_left(ROWS, device)
    images = [image.to(device) for image in IMAGES]
    together = model.generate(ids, images=images, attention_mask=mask, **GREEDY)
    for row, own, answer in zip(ROWS, images_of(ROWS), together, strict=True):
        own = [image.to(device) for image in own]
        alone = model.generate(torch.tensor([row], device=device), images=own or None, **GREEDY)
        assert torch.equal(alone[0], answer)


@TREES
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@torch.no_grad()
def test_in_half_precision_a_batch_differs_by_rounding_alone(folder, device, dtype, qlip):
    """By less than half precision differs from float32."""
    half = load_pretrained_model(str(folder), device=device, torch_dtype=dtype, qlip=qlip)[1]
    whole = load_pretrained_model(str(folder), device=device, torch_dtype=torch.float32, qlip=qlip)[1]
    half.config.tokenizer_padding_side = "left"
    ids, mask = pad_left(ROWS, device)
    together = half(ids, attention_mask=mask, images=[image.to(device) for image in IMAGES]).logits
    for row, own, found in zip(ROWS, images_of(ROWS), together, strict=True):
        alone, exact = logits_of(half, row, own), logits_of(whole, row, own)
        assert error(found[-len(alone) :], alone) < 2 * error(alone, exact) + 1e-3


@TREES
def test_weighted_leaves_have_the_logits_of_the_cpu(folder, device, qlip):
    there, here = (
        load_pretrained_model(str(folder), device=place, torch_dtype=torch.float32, qlip=qlip)[1]
        for place in (device, "cpu")
    )
    for row, own in zip(ROWS, images_of(ROWS), strict=True):
        assert error(logits_of(there, row, own), logits_of(here, row, own)) < 1e-4


def test_a_size_bias_in_the_language_model_matters(folder, device):
    """So that the tests above would see it if it were left out."""
    model = load_pretrained_model(str(folder), device=device, torch_dtype=torch.float16, qlip=BIASED)[1]
    biased = logits_of(model, ROWS[0], IMAGES[:1])
    tower = model.get_vision_tower()
    tower.settings = replace(tower.settings, llm_size_bias=0.0)
    assert error(logits_of(model, ROWS[0], IMAGES[:1]), biased) > 0.02


@TREES
@torch.no_grad()
def test_the_gpu_is_not_waited_for_row_by_row(folder, gpu, qlip):
    model = load_pretrained_model(str(folder), device=gpu, torch_dtype=torch.float16, qlip=qlip)[1]
    images = model.encode_tokens([image.to(gpu) for image in IMAGES])

    def waits(times: int) -> int:
        ids, mask = pad_left(ROWS * times, gpu)
        return count_launches(lambda: model.splice_images(ids, mask, ids, images * times, "left"), gpu)["waits"]

    assert waits(8) == waits(1) > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_engine_answers_as_generate_does(device, dtype):
    """The embedded model, six requests at once, each with a picture, against one `generate` each."""
    engine = ChatEngine(*load_pretrained_model(demo_model_path(), device=device, torch_dtype=dtype))
    model, tokenizer = engine.model, engine.tokenizer
    pictures = [Image.fromarray(scene(PRESETS["base"], 8200, number).image) for number in range(6)]
    texts = [QUESTIONS[number % len(QUESTIONS)] for number in range(6)]
    greedy = Sampling(temperature=0.0, max_new_tokens=48)
    running = [
        engine.submit(engine.question(text, 1), [picture], greedy)
        for text, picture in zip(texts, pictures, strict=True)
    ]
    answers = ["".join(answer).strip() for answer in running]
    engine.close()
    for text, picture, answer in zip(texts, pictures, answers, strict=True):
        prompt = engine.question(text, 1).get_prompt()
        ids = torch.tensor([tokenizer_image_token(prompt, tokenizer)], device=model.device)
        said = model.generate(
            ids,
            images=engine.prepare_images([picture]),
            do_sample=False,
            max_new_tokens=48,
            pad_token_id=engine.padding_id,
        )
        assert answer == tokenizer.batch_decode(said, skip_special_tokens=True)[0].strip() != ""
