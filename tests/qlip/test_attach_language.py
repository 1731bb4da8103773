"""qlip.attach on transformers' LLaVA models: what they gave they still give, and leaves behave as tokens should."""

from __future__ import annotations

import copy
import json
import pickle

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    LlavaForConditionalGeneration,
    Trainer,
    TrainingArguments,
    pipeline,
)

import qlip
from tests.qlip.hosts import IMAGE_TOKEN, NATIVE, WIDTH, make_language_model, make_processor, picture

KINDS = ["llava", "llava_siglip", "vipllava", "llava_next"]
UNIFORM = {"alpha": 0.0, "max_tokens": None}
TREE = {"criterion": "gradient", "coarsest": "any", "alpha": 0.5, "max_tokens": 40, "llm_size_bias": 0.0}
SETTINGS = {
    "defaults": {"alpha": 0.3},
    "raster": TREE,
    "sequential": {**TREE, "llm_positions": "sequential"},
    "biased": {**TREE, "llm_size_bias": 1.0, "size_bias": 0.5},
    "native weight": {**TREE, "llm_weight": "native"},
    "thumbnail": {**TREE, "thumbnail": True, "llm_size_bias": 0.5},
}
GREEDY = {"do_sample": False, "max_new_tokens": 6}
PROMPTS = ["USER: <image>\nwhat? ASSISTANT:", "<image> and <image>: which?", "no picture", "see <image>"]
PICTURES = [picture(56, 56, 0), picture(112, 168, 1), picture(56, 98, 2), picture(140, 140, 3)]


def attached(kind: str, **settings):
    return qlip.attach(make_language_model(kind), make_processor(kind), **settings)


def ask(processor, prompts, pictures):
    return processor(images=pictures or None, text=prompts, return_tensors="pt", padding=True)


def rows():
    left = iter(PICTURES)
    return [(prompt, [next(left) for _ in range(prompt.count("<image>"))]) for prompt in PROMPTS]


@pytest.mark.parametrize("kind", KINDS[:3])
@torch.no_grad()
def test_at_the_native_grid_logits_and_answers_are_the_untouched_models(kind):
    """Raster positions and both biases must change nothing there."""
    natives = [picture(NATIVE, NATIVE, seed) for seed in range(4)]
    model, processor = make_language_model(kind), make_processor(kind)
    inputs = ask(processor, PROMPTS, natives)
    expected = model(**inputs, position_ids=(inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)).logits
    answer = model.generate(**inputs, **GREEDY)
    model, processor = qlip.attach(model, processor, **UNIFORM, llm_size_bias=0.7, size_bias=0.7, llm_weight="native")
    ours = ask(processor, PROMPTS, natives)
    assert torch.equal(ours["input_ids"], inputs["input_ids"])
    real = inputs["attention_mask"].bool()
    torch.testing.assert_close(model(**ours).logits[real], expected[real], atol=1e-4, rtol=0)
    assert expected.std() > 0.05
    assert torch.equal(model.generate(**ours, **GREEDY), answer)


@torch.no_grad()
def test_llava_next_sees_its_base_image_and_the_newline():
    """Oracle: transformers' own packing of an image that has no tiles."""
    model, plain = make_language_model("llava_next"), make_processor("llava_next")
    image, prompt = picture(NATIVE, NATIVE), "USER: <image>\nwhat?"
    base = plain(images=[image], text=[prompt], return_tensors="pt")["pixel_values"][:, 0]
    hidden = model.model.vision_tower(base, output_hidden_states=True).hidden_states[-2][:, 1:]
    projected = model.model.multi_modal_projector(hidden)[None]
    packed, lengths = model.model.pack_image_features(
        projected, torch.tensor([[NATIVE, NATIVE]]), "default", image_newline=model.model.image_newline
    )
    assert lengths.tolist() == [17]
    before, after = (plain.tokenizer(text, return_tensors="pt").input_ids for text in prompt.split("<image>"))
    embed = model.get_input_embeddings()
    expected = model(inputs_embeds=torch.cat([embed(before), packed[0][None], embed(after)], dim=1)).logits
    model, processor = qlip.attach(model, plain, **UNIFORM)
    torch.testing.assert_close(model(**ask(processor, [prompt], [image])).logits, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_pixels_without_leaves_are_cut_by_the_model(kind):
    model, processor = attached(kind, **TREE)
    inputs = ask(processor, PROMPTS[:2], PICTURES[:3])
    expected, answer = model(**inputs).logits, model.generate(**inputs, **GREEDY)
    pixels = processor.image_processor(PICTURES[:3], return_tensors="pt")["pixel_values"]
    text = {"input_ids": inputs["input_ids"], "attention_mask": inputs["attention_mask"]}
    torch.testing.assert_close(model(**text, pixel_values=pixels).logits, expected)
    assert torch.equal(model.generate(**text, pixel_values=pixels, **GREEDY), answer)


@pytest.fixture(scope="module", params=[("llava", s) for s in SETTINGS] + [(k, "defaults") for k in KINDS[1:]], ids=str)
def host(request):
    kind, name = request.param
    return attached(kind, **SETTINGS[name])


@torch.no_grad()
def test_a_batch_answers_as_its_rows_alone(host):
    model, processor = host
    inputs = ask(processor, PROMPTS, PICTURES)
    together = model.generate(**inputs, **GREEDY)[:, inputs["input_ids"].shape[1] :]
    logits = model(**inputs).logits
    for index, (prompt, pictures) in enumerate(rows()):
        alone = ask(processor, [prompt], pictures)
        length = alone["input_ids"].shape[1]
        assert torch.equal(model.generate(**alone, **GREEDY)[0, length:], together[index])
        torch.testing.assert_close(logits[index, -length:], model(**alone).logits[0], atol=1e-4, rtol=0)


@torch.no_grad()
def test_cached_generation_equals_a_full_pass_over_the_longer_prompt(host):
    """Positions go on behind the image's span, and the key bias stays, through the cache."""
    model, processor = host
    inputs = ask(processor, ["<image> and <image>"], PICTURES[1:3])
    answer = model.generate(**inputs, **GREEDY)
    length = inputs["input_ids"].shape[1]
    for end in range(length, answer.shape[1]):
        longer = {**inputs, "input_ids": answer[:, :end], "attention_mask": torch.ones(1, end, dtype=torch.int64)}
        assert int(model(**longer).logits[0, -1].argmax()) == answer[0, end]


@torch.no_grad()
def test_a_static_cache_gives_the_same_answers(host):
    model, processor = host
    for prompts, pictures in ((PROMPTS, PICTURES), (PROMPTS[1:2], PICTURES[1:3])):  # with padding and without
        inputs = ask(processor, prompts, pictures)
        expected = model.generate(**inputs, **GREEDY)
        static = model.generate(**inputs, **GREEDY, cache_implementation="static", disable_compile=True)
        assert torch.equal(static, expected)


@torch.no_grad()
def test_beams_and_prompt_lookup_agree_with_greedy_search(host):
    model, processor = host
    inputs = ask(processor, PROMPTS[1:2], PICTURES[1:3])
    options = {"do_sample": False, "max_new_tokens": 4, "return_dict_in_generate": True, "output_scores": True}
    greedy = model.generate(**inputs, **options)
    looked_up = model.generate(**inputs, **options, prompt_lookup_num_tokens=2)
    assert torch.equal(looked_up.sequences, greedy.sequences)
    beam = model.generate(**inputs, num_beams=3, length_penalty=0.0, **options)
    several = model.generate(**inputs, num_beams=3, num_return_sequences=3, length_penalty=0.0, **options)
    assert torch.equal(several.sequences[:1], beam.sequences)
    new = greedy.sequences[0, inputs["input_ids"].shape[1] :]
    scores = [s.log_softmax(-1)[0, token] for s, token in zip(greedy.scores, new, strict=True)]
    assert beam.sequences_scores[0] >= sum(scores) - 1e-4


@torch.no_grad()
def test_beams_weigh_several_images_as_a_full_pass_does(host):
    """The score of the best beam is the sum that the model alone, uncached, gives its tokens."""
    model, processor = host
    inputs = ask(processor, PROMPTS[1:2], PICTURES[1:3])
    options = {"do_sample": False, "max_new_tokens": 4, "return_dict_in_generate": True, "output_scores": True}
    beam = model.generate(**inputs, num_beams=3, length_penalty=0.0, **options)
    length = inputs["input_ids"].shape[1]
    longer = {**inputs, "input_ids": beam.sequences, "attention_mask": torch.ones_like(beam.sequences)}
    logits = model(**longer).logits[0, length - 1 : -1].log_softmax(-1)
    score = logits.gather(1, beam.sequences[0, length:, None]).sum()
    torch.testing.assert_close(beam.sequences_scores[0], score, atol=1e-4, rtol=0)


@torch.no_grad()
def test_a_second_turn_goes_on_from_the_cache_of_the_first(host):
    model, processor = host
    first = ask(processor, ["<image> and <image>?"], PICTURES[1:3])
    said = model.generate(**first, **GREEDY, return_dict_in_generate=True)
    more = torch.cat([said.sequences, processor.tokenizer(" why?", return_tensors="pt").input_ids], dim=1)
    second = {**first, "input_ids": more, "attention_mask": torch.ones_like(more)}
    expected = model.generate(**second, **GREEDY)
    assert torch.equal(model.generate(**second, past_key_values=said.past_key_values, **GREEDY), expected)


def test_image_becomes_as_many_tokens_as_the_tower_makes_of_it(host):
    model, processor = host
    newline = hasattr(model.model, "image_newline")
    for image in PICTURES:
        inputs = ask(processor, ["a <image> b"], [image])
        pixels = processor.image_processor(image, return_tensors="pt")["pixel_values"]
        vision = model.attachment.vision
        tree = vision.partition(pixels[0])
        expected = len(tree) + 16 * vision.qlip.thumbnail + newline
        assert int((inputs["input_ids"] == IMAGE_TOKEN).sum()) == expected
        assert len(model.get_image_features(**{k: inputs[k] for k in qlip.PACKED_NAMES}).pooler_output[0]) == expected


@torch.no_grad()
def test_text_stands_where_the_native_grid_puts_it():
    """However many leaves an image has, the text behind it stands 16 positions after its start."""
    model, processor = attached("llava", **TREE)
    for image in PICTURES:
        inputs = ask(processor, ["ab<image>c"], [image])
        placed = model.place_images(inputs["input_ids"], None, inputs["leaf_boxes"], inputs["leaf_grids"])
        assert placed.positions[0, [0, 1, -1]].tolist() == [0, 1, 2 + 16]
        assert placed.positions[0, 2:-1].max() <= 2 + 15
        assert placed.end.tolist() == [2 + 16 + 1]


@torch.no_grad()
def test_positions_and_biases_reach_the_language_model():
    logits = []
    for name in ("raster", "sequential", "biased", "native weight"):
        model, processor = attached("llava", **SETTINGS[name])
        logits.append(model(**ask(processor, PROMPTS[:1], PICTURES[1:2])).logits)
    assert all(not torch.allclose(logits[0], other, atol=1e-3) for other in logits[1:])


@torch.no_grad()
def test_positions_of_ones_own_are_kept_and_the_bias_stays():
    model, processor = attached("llava", alpha=0.3)
    inputs = ask(processor, PROMPTS[:1], PICTURES[1:2])
    placed = model.place_images(inputs["input_ids"], None, inputs["leaf_boxes"], inputs["leaf_grids"])
    expected, answer = model(**inputs).logits, model.generate(**inputs, **GREEDY)
    assert torch.equal(model(**inputs, position_ids=placed.positions).logits, expected)
    counted = torch.arange(inputs["input_ids"].shape[1])[None]
    assert not torch.allclose(model(**inputs, position_ids=counted).logits, expected, atol=1e-3)
    assert torch.equal(model.generate(**inputs, position_ids=placed.positions, **GREEDY), answer)


@torch.no_grad()
def test_a_decoding_loop_of_ones_own(host):
    """As docs/TRANSFORMERS.md describes it."""
    model, processor = host
    inputs = ask(processor, PROMPTS[1:2], PICTURES[1:3])
    placed = model.place_images(inputs["input_ids"], None, inputs["leaf_boxes"], inputs["leaf_grids"])
    bias = qlip.key_bias(placed.sizes)
    output = model(**inputs, use_cache=True)
    tokens = [output.logits[:, -1:].argmax(-1)]
    for step in range(GREEDY["max_new_tokens"] - 1):
        output = model(
            input_ids=tokens[-1],
            past_key_values=output.past_key_values,
            position_ids=placed.end[:, None] + step,
            key_bias=bias,
        )
        tokens.append(output.logits[:, -1:].argmax(-1))
    expected = model.generate(**inputs, **GREEDY)[:, inputs["input_ids"].shape[1] :]
    assert torch.equal(torch.cat(tokens, dim=1), expected)


def chat(image):
    content = [{"type": "image", "image": image}, {"type": "text", "text": "what?"}]
    return [{"role": "user", "content": content}]


@torch.no_grad()
def test_chat_template():
    model, processor = attached("llava", **TREE)
    inputs = processor.apply_chat_template(
        chat(PICTURES[1]), add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    expected = ask(processor, ["USER: <image>\nwhat? ASSISTANT:"], PICTURES[1:2])
    assert inputs.keys() == expected.keys()
    assert all(torch.equal(inputs[name], expected[name]) for name in inputs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pipeline(dtype):
    """In half precision too, where pixels are rounded on their way to the model: the tree is cut before."""
    model, processor = attached("llava", **TREE)
    model = model.to(dtype)
    pipe = pipeline("image-text-to-text", model=model, processor=processor)
    chats = [chat(image) for image in PICTURES[:3]]
    said = pipe(text=chats, max_new_tokens=4, return_full_text=False)
    assert dtype != torch.float32 or pipe(text=chats, max_new_tokens=4, return_full_text=False, batch_size=2) == said
    for answer, image in zip(said, PICTURES[:3], strict=True):
        inputs = ask(processor, ["USER: <image>\nwhat? ASSISTANT:"], [image]).to(dtype)
        new = model.generate(**inputs, do_sample=False, max_new_tokens=4)[0, inputs["input_ids"].shape[1] :]
        assert answer[0]["generated_text"] == processor.decode(new, skip_special_tokens=True)
    several = pipe(images=PICTURES[1:3], text=["<image> and <image>"], max_new_tokens=2, return_full_text=False)
    assert isinstance(several[0]["generated_text"], str)


def test_saved_and_loaded_by_transformers_alone_then_attached(tmp_path):
    plain = make_language_model("llava")
    model, processor = attached("llava", **TREE)
    plain.save_pretrained(tmp_path / "plain")
    model.save_pretrained(tmp_path / "qlip")
    processor.save_pretrained(tmp_path / "qlip")
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("plain", "qlip"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    config = json.loads((tmp_path / "qlip" / "config.json").read_text())
    assert config.pop("qlip")["max_tokens"] == 40
    assert config == json.loads((tmp_path / "plain" / "config.json").read_text())

    inputs = ask(processor, PROMPTS[:2], PICTURES[:3])
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path / "qlip")
    loaded_processor = AutoProcessor.from_pretrained(tmp_path / "qlip", backend="pil")
    native = ask(make_processor("llava"), PROMPTS[:2], PICTURES[:3])
    theirs = ask(loaded_processor, PROMPTS[:2], PICTURES[:3])
    assert type(loaded) is LlavaForConditionalGeneration
    assert all(torch.equal(native[name], theirs[name]) for name in native)
    loaded, loaded_processor = qlip.attach(loaded, loaded_processor)
    again = ask(loaded_processor, PROMPTS[:2], PICTURES[:3])
    assert all(torch.equal(inputs[name], again[name]) for name in inputs)
    with torch.no_grad():
        assert torch.equal(loaded(**again).logits, model(**inputs).logits)


def test_keywords_are_laid_over_what_the_checkpoint_says():
    model, _ = attached("llava", **TREE)
    model, _ = qlip.attach(model, alpha=0.9)
    assert model.config.qlip["alpha"] == 0.9
    assert model.config.qlip["max_tokens"] == 40
    model, _ = qlip.attach(model, config=qlip.QLIPConfig(alpha=0.1))
    assert model.config.qlip == qlip.QLIPConfig(alpha=0.1).to_dict()


def test_the_prior_is_saved_beside_the_weights_and_found_again(tmp_path):
    qlip.CoordinateMLP(WIDTH, hidden=8).save(tmp_path / "mine.safetensors")
    prior = str(tmp_path / "mine.safetensors")
    model, processor = attached("llava", **TREE, interpolation="mlp", mlp=prior)
    model.save_pretrained(tmp_path / "saved")
    assert model.config.qlip["mlp"] == prior
    (tmp_path / "mine.safetensors").unlink()
    loaded, _ = qlip.attach(LlavaForConditionalGeneration.from_pretrained(tmp_path / "saved"))
    inputs = ask(processor, PROMPTS[:1], PICTURES[1:2])
    with torch.no_grad():
        assert torch.equal(loaded(**inputs).logits, model(**inputs).logits)


def test_trainer_moves_the_projector_and_what_else_is_not_frozen(tmp_path):
    model, processor = attached("llava", alpha=0.3)
    model.requires_grad_(False)
    model.model.multi_modal_projector.requires_grad_(True)
    before = copy.deepcopy(model.state_dict())

    def collate(examples):
        inputs = ask(processor, [text for text, _ in examples], [image for _, image in examples])
        labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
        return {**inputs, "labels": labels.masked_fill(labels == IMAGE_TOKEN, -100)}

    options = {"max_steps": 2, "per_device_train_batch_size": 2, "learning_rate": 0.05, "use_cpu": True}
    arguments = TrainingArguments(
        str(tmp_path), report_to=[], save_strategy="no", logging_steps=1, remove_unused_columns=False, **options
    )
    data = [("USER: <image>\nwhat? ASSISTANT: this", image) for image in PICTURES]
    trainer = Trainer(model, arguments, train_dataset=data, data_collator=collate)
    trainer.train()
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {name for name in before if "multi_modal_projector" in name}
    assert all(np.isfinite(step["loss"]) for step in trainer.state.log_history if "loss" in step)


def test_gradients_reach_the_whole_tower_unless_it_is_frozen():
    model, processor = attached("llava", **TREE)
    inputs = ask(processor, PROMPTS[:1], PICTURES[1:2])
    model(**inputs, labels=inputs["input_ids"]).loss.backward()
    tower = model.model.vision_tower
    assert tower.embeddings.position_embedding.weight.grad.abs().sum() > 0
    assert tower.encoder.layers[0].self_attn.q_proj.weight.grad.abs().sum() > 0
    assert tower.encoder.layers[3].mlp.fc1.weight.grad is None  # above the layer that is read


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_detach_gives_back_what_was_there(kind):
    model, processor = make_language_model(kind), make_processor(kind)
    inputs = ask(processor, PROMPTS[:1], PICTURES[:1])
    expected, text = model(**inputs).logits, repr(model)
    classes = [type(module) for module in model.modules()]
    config = model.config.to_dict()
    model, ours = qlip.attach(model, processor, **TREE)
    assert repr(model) == text
    model, plain = qlip.detach(model, ours)
    again = ask(plain, PROMPTS[:1], PICTURES[:1])
    assert all(torch.equal(inputs[name], again[name]) for name in inputs)
    assert torch.equal(model(**again).logits, expected)
    assert [type(module) for module in model.modules()] == classes
    assert model.config.to_dict() == config


def test_other_models_of_the_class_are_untouched():
    attached("llava", **TREE)
    inputs = ask(make_processor("llava"), PROMPTS[:1], PICTURES[:1])
    assert inputs["pixel_values"].shape == (1, 3, NATIVE, NATIVE)
    assert make_language_model("llava")(**inputs).logits.shape[1] == inputs["input_ids"].shape[1]


@pytest.mark.parametrize(
    "clone", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))], ids=["copy", "pickle"]
)
def test_a_copy_is_attached_to_its_own_weights(clone):
    model, processor = attached("llava", **TREE)
    other = clone(model)
    assert type(other) is type(model)
    assert other.attachment.vision.encoder is other.model.vision_tower.encoder
    with torch.no_grad():
        other.model.vision_tower.embeddings.patch_embedding.weight.zero_()
        inputs = ask(processor, PROMPTS[:1], PICTURES[1:2])
        assert not torch.allclose(other(**inputs).logits, model(**inputs).logits)


def test_what_does_not_belong_together_is_an_error():
    model, processor = attached("llava", **TREE)
    inputs = dict(ask(processor, PROMPTS[:1], PICTURES[1:2]))
    with pytest.raises(ValueError, match=r"the prompt holds \d+ image tokens, its 1 images have"):
        model(**{**inputs, "input_ids": inputs["input_ids"][:, :-20], "attention_mask": None})
    with pytest.raises(ValueError, match="leaf_boxes and leaf_grids go together"):
        model.get_image_features(inputs["pixel_values"], leaf_boxes=inputs["leaf_boxes"])
    with pytest.raises(
        ValueError, match=r"pixel_values are \(3, 3, 14, 14\), and leaf_boxes hold \d+ leaves of 1 images"
    ):
        model.get_image_features(inputs["pixel_values"][:3], inputs["leaf_boxes"], inputs["leaf_grids"])
    with pytest.raises(ValueError, match="cut with thumbnail=True, the model is attached with False"):
        _, other = attached("llava", **TREE, thumbnail=True)
        model.get_image_features(**other.image_processor.pack(PICTURES[1:2]))
    with pytest.raises(ValueError, match="no leaf_boxes: give all"):
        model.get_image_features(inputs["pixel_values"][None])
    with pytest.raises(ValueError, match="can't be told from embeddings"):
        embeds = model.get_input_embeddings()(inputs.pop("input_ids"))
        model.generate(inputs_embeds=embeds, **inputs, **GREEDY)
    with pytest.raises(TypeError, match="do_resize can't be given"):
        processor(images=PICTURES[:1], text=PROMPTS[:1], images_kwargs={"do_resize": False})
