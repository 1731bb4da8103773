"""An attached LLaVA model in daily use: chat templates, pipelines, saving, training, copies, detaching."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
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
from tests.qlip.integrations.models import (
    GREEDY,
    IMAGE_TOKEN,
    NATIVE,
    PICTURES,
    PROMPTS,
    TREE,
    WIDTH,
    ask,
    attached,
    make_language_model,
    make_processor,
)

KINDS = ["llava", "llava_siglip", "vipllava", "llava_next"]


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
    talks = [
        [{"role": "user", "content": [*chat(one)[0]["content"], *chat(two)[0]["content"]]}]
        for one, two in (PICTURES[:2], PICTURES[1:3])
    ]
    assert len(pipe(text=talks, max_new_tokens=2, return_full_text=False)) == 2
    with pytest.raises(ValueError, match="a pipeline of transformers that batches chats .* takes one image in each"):
        pipe(text=talks, max_new_tokens=2, batch_size=2)


@pytest.mark.parametrize("kind", KINDS)
def test_the_class_of_an_attached_processor_loads_a_plain_one(kind, tmp_path):
    """As that of an attached model does: only `attach` makes an attached one."""
    _, processor = attached(kind, **TREE)
    processor.save_pretrained(tmp_path)
    loaded = type(processor).from_pretrained(tmp_path, backend="pil")
    assert type(loaded) is type(make_processor(kind))
    assert loaded.to_dict() == make_processor(kind).to_dict()


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


@pytest.mark.parametrize("attached_first", [True, False], ids=["attach, then LoRA", "LoRA, then attach"])
def test_lora(attached_first):
    """Adapters in tower and language model are seen and trained, whichever came first."""
    model, processor = make_language_model("llava"), make_processor("llava")
    if attached_first:
        model, processor = qlip.attach(model, processor, **TREE)
    adapted = get_peft_model(model, LoraConfig(target_modules=["q_proj", "v_proj"]))
    if not attached_first:
        _, processor = qlip.attach(adapted.get_base_model(), processor, **TREE)
    inputs = ask(processor, PROMPTS[:1], PICTURES[1:2])
    assert adapted.generate(**inputs, **GREEDY).shape == (1, inputs["input_ids"].shape[1] + GREEDY["max_new_tokens"])
    adapted(**inputs, labels=inputs["input_ids"]).loss.backward()
    seen = [p.grad.abs().sum() > 0 for name, p in adapted.named_parameters() if "lora_B" in name and p.grad is not None]
    assert len(seen) == 2 * 5 and all(seen)  # three layers of the tower are read, and two of the language model


def test_sampling_is_repeatable_by_its_seed():
    model, processor = attached("llava", **TREE)
    inputs = ask(processor, PROMPTS, PICTURES)
    drawn = []
    for _ in range(2):
        torch.manual_seed(0)
        drawn.append(model.generate(**inputs, do_sample=True, num_return_sequences=2, max_new_tokens=5))
    assert torch.equal(*drawn)
    assert drawn[0].shape == (8, inputs["input_ids"].shape[1] + 5)
    assert not torch.equal(drawn[0][0], drawn[0][1])


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


@pytest.mark.parametrize("kind", ["llava", "llava_next"])
@pytest.mark.parametrize("none", [None, [], (), [[], []]], ids=str)
@torch.no_grad()
def test_a_prompt_without_pictures_is_the_untouched_processors(kind, none):
    model, processor = attached(kind, **TREE)
    inputs = processor(images=none, text=["hi", "good day"], return_tensors="pt", padding=True)
    expected = make_processor(kind)(text=["hi", "good day"], return_tensors="pt", padding=True)
    assert inputs.keys() == expected.keys()
    assert all(torch.equal(inputs[name], expected[name]) for name in expected)
    assert torch.equal(model(**inputs).logits, make_language_model(kind)(**expected).logits)


def test_other_models_of_the_class_are_untouched():
    attached("llava", **TREE)
    inputs = ask(make_processor("llava"), PROMPTS[:1], PICTURES[:1])
    assert inputs["pixel_values"].shape == (1, 3, NATIVE, NATIVE)
    assert make_language_model("llava")(**inputs).logits.shape[1] == inputs["input_ids"].shape[1]


def test_what_does_not_belong_together_is_an_error():
    model, processor = attached("llava", **TREE)
    inputs = dict(ask(processor, PROMPTS[:1], PICTURES[1:2]))
    with pytest.raises(ValueError, match=r"the prompt holds \d+ image tokens, and its images \(1\) have"):
        model(**{**inputs, "input_ids": inputs["input_ids"][:, :-20], "attention_mask": None})
    with pytest.raises(ValueError, match="leaf_boxes and leaf_grids go together"):
        model.get_image_features(inputs["pixel_values"], leaf_boxes=inputs["leaf_boxes"])
    with pytest.raises(
        ValueError, match=r"pixel_values are \(3, 3, 14, 14\), and leaf_boxes hold \d+ leaves of 1 images"
    ):
        model.get_image_features(inputs["pixel_values"][:3], inputs["leaf_boxes"], inputs["leaf_grids"])
    with pytest.raises(ValueError, match="cut with thumbnail=True, the model has thumbnail=False"):
        _, other = attached("llava", **TREE, thumbnail=True)
        model.get_image_features(**other.image_processor.pack(PICTURES[1:2]))
    with pytest.raises(ValueError, match="without leaf_boxes: give all"):
        model.get_image_features(inputs["pixel_values"][None])
    with pytest.raises(ValueError, match="can't be found in embeddings"):
        embeds = model.get_input_embeddings()(inputs.pop("input_ids"))
        model.generate(inputs_embeds=embeds, **inputs, **GREEDY)
    with pytest.raises(TypeError, match="do_resize can't be given"):
        processor(images=PICTURES[:1], text=PROMPTS[:1], images_kwargs={"do_resize": False})
    with pytest.raises(TypeError, match="image_grid_pinpoints can't be given"):
        processor(images=PICTURES[:1], text=PROMPTS[:1], images_kwargs={"image_grid_pinpoints": [[56, 56]]})
    with pytest.raises(TypeError, match=r"max_tokens is not an option for images: give it to .*attach\(.*max_tokens="):
        processor(images=PICTURES[:1], text=PROMPTS[:1], images_kwargs={"max_tokens": 7})
    with pytest.raises(TypeError, match="do_size is not an option for images$"):
        processor(images=PICTURES[:1], text=PROMPTS[:1], images_kwargs={"do_size": True})
    with pytest.raises(ValueError, match="output_hidden_states is true"):
        model.get_image_features(**processor.image_processor.pack(PICTURES[:1]), output_hidden_states=True)
    model.set_attn_implementation({"text_config": "sdpa", "vision_config": "flex_attention"})
    with pytest.raises(ValueError, match="tower's attention is 'flex_attention', which takes no padding mask"):
        model.get_image_features(**processor.image_processor.pack(PICTURES[:1]))


BIASED = {**TREE, "llm_size_bias": -0.25}


@pytest.mark.parametrize(
    ("settings", "lost"),
    [(BIASED, "position_ids and key_bias"), ({**BIASED, "llm_positions": "sequential"}, "key_bias")],
    ids=["raster", "sequential"],
)
@torch.no_grad()
def test_a_prompt_of_embeddings_keeps_its_images_places_and_weights(settings, lost):
    """It does not show its image tokens: their positions come with it, or an error says what is missing."""
    model, processor = attached("llava", **settings)
    inputs = dict(ask(processor, PROMPTS[:2], PICTURES[:3]))
    expected, real = model(**inputs).logits, inputs["attention_mask"].bool()
    ids, images = inputs.pop("input_ids"), [inputs[name] for name in ("leaf_boxes", "leaf_grids")]
    inputs["inputs_embeds"] = model.get_input_embeddings()(ids)
    with pytest.raises(ValueError, match=f"can't be found in embeddings; give {lost} "):
        model(**inputs)
    placed = model.place_images(ids, inputs["attention_mask"], *images)
    got = model(**inputs, position_ids=placed.positions, key_bias=qlip.key_bias(placed.sizes)).logits
    torch.testing.assert_close(got[real], expected[real], atol=1e-4, rtol=0)


@torch.no_grad()
def test_a_prompt_of_embeddings_without_places_or_weights_is_transformers_own():
    model, processor = attached("llava", **{**TREE, "llm_positions": "sequential"})
    inputs = dict(ask(processor, PROMPTS[:1], PICTURES[:1]))
    expected = model(**inputs).logits
    inputs["inputs_embeds"] = model.get_input_embeddings()(inputs.pop("input_ids"))
    torch.testing.assert_close(model(**inputs).logits, expected, atol=1e-4, rtol=0)
