"""`qlip.attach` refuses unsupported models and gives the reason."""

from __future__ import annotations

import copy

import pytest
import torch
from accelerate import cpu_offload
from transformers import (
    BeitConfig,
    BeitModel,
    Blip2Config,
    Blip2ForConditionalGeneration,
    CLIPImageProcessorPil,
    CLIPVisionModelWithProjection,
    DINOv3ViTConfig,
    DINOv3ViTModel,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Idefics2Config,
    Idefics2ForConditionalGeneration,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
)

import qlip
from tests.qlip.integrations.models import (
    IMAGE_TOKEN,
    PICTURES,
    PROMPTS,
    SHAPE,
    TEXT,
    VISION,
    ask,
    attached,
    make_contrastive_model,
    make_language_model,
    make_vision_model,
)


def test_the_part_of_a_model_that_can_be_attached_is_named():
    config = make_vision_model("clip").config
    model = CLIPVisionModelWithProjection(config)
    with pytest.raises(TypeError, match="CLIPVisionModelWithProjection is none of .* its part 'vision_model' is"):
        qlip.attach(model)
    qlip.attach(model.vision_model, alpha=0.0, max_tokens=None)
    assert model([torch.zeros(3, 56, 56)]).image_embeds.shape == (1, config.projection_dim)


def test_a_compiled_model_is_attached_before():
    with pytest.raises(TypeError, match=r"OptimizedModule is compiled; attach model\._orig_mod"):
        qlip.attach(torch.compile(make_vision_model("clip")))


NARROW = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}


def on_meta(model: type, config):
    """Only the modules' classes are looked at."""
    with torch.device("meta"):
        return model(config)


def pixtral():
    vision = {"model_type": "pixtral", **NARROW, "image_size": 56, "patch_size": 14}
    config = LlavaConfig(vision_config=vision, text_config=dict(TEXT), image_token_index=IMAGE_TOKEN)
    return on_meta(LlavaForConditionalGeneration, config)


def blip2():
    config = Blip2Config(
        vision_config={**NARROW, "image_size": 56, "patch_size": 14},
        qformer_config={**NARROW, "encoder_hidden_size": 32},
        text_config={"model_type": "opt", **NARROW, "word_embed_proj_dim": 32, "ffn_dim": 64, "vocab_size": 99},
    )
    return on_meta(Blip2ForConditionalGeneration, config)


def idefics2():
    config = Idefics2Config(
        vision_config={**NARROW, "image_size": 56, "patch_size": 14},
        perceiver_config={"resampler_depth": 1, "hidden_size": 32},
        text_config={"model_type": "mistral", **SHAPE, "num_hidden_layers": 1, "num_key_value_heads": 4},
    )
    return on_meta(Idefics2ForConditionalGeneration, config)


def qwen2_vl():
    config = Qwen2VLConfig(
        vision_config={"depth": 1, "embed_dim": 32, "hidden_size": 32, "num_heads": 4},
        text_config={**NARROW, "num_key_value_heads": 4, "vocab_size": 99},
    )
    return on_meta(Qwen2VLForConditionalGeneration, config)


def gemma3():
    config = Gemma3Config(
        vision_config={**NARROW, "image_size": 56, "patch_size": 14},
        text_config={**NARROW, "num_key_value_heads": 4, "head_dim": 8, "vocab_size": 99},
        mm_tokens_per_image=4,
    )
    return on_meta(Gemma3ForConditionalGeneration, config)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (pixtral, "PixtralVisionModel is none of CLIPVisionModel, .*: the positions of its vision tower are rotary"),
        (qwen2_vl, "to Qwen2VLForConditionalGeneration: the positions of its vision tower are rotary"),
        (lambda: on_meta(DINOv3ViTModel, DINOv3ViTConfig(**NARROW)), "DINOv3ViTModel is none of .* are rotary"),
        (lambda: on_meta(BeitModel, BeitConfig(**NARROW, use_relative_position_bias=True)), "biases between the cells"),
        (blip2, "to Blip2ForConditionalGeneration: its Q-Former turns any image into a fixed number of tokens"),
        (idefics2, "to Idefics2ForConditionalGeneration: its resampler turns any image into a fixed number"),
        (gemma3, "to Gemma3ForConditionalGeneration: it is not known to take a variable number of tokens"),
        (lambda: on_meta(LlamaForCausalLM, LlamaConfig(**NARROW)), "LlamaForCausalLM is none of CLIPVisionModel"),
        (lambda: torch.nn.Linear(1, 1), "Linear is none of CLIPVisionModel"),
    ],
)
def test_models(make, reason):
    with pytest.raises(TypeError, match=reason):
        qlip.attach(make())


@pytest.mark.parametrize(
    ("kind", "strategy", "reason"),
    [("llava", "full", r"keep \[CLS\]"), ("llava_siglip", "default", "drop a patch")],
)
def test_strategies_that_do_not_fit_the_tower(kind, strategy, reason):
    model = make_language_model(kind)
    model.config.vision_feature_select_strategy = strategy
    with pytest.raises(TypeError, match=reason):
        qlip.attach(model)


def test_processors_without_a_tokenizer():
    with pytest.raises(TypeError, match="with both an image processor and a tokenizer"):
        qlip.attach(make_language_model("llava"), CLIPImageProcessorPil())


def with_text(config):
    vision = {**VISION, "model_type": "clip_vision_model"}
    return LlavaForConditionalGeneration(LlavaConfig(vision_config=vision, text_config=config, image_token_index=3))


def test_language_models_without_rotary_positions():
    model = make_language_model("llava")
    del model.model.language_model.rotary_emb
    with pytest.raises(TypeError, match="'llama' has no rotary positions, .* give llm_positions='sequential'"):
        qlip.attach(model)
    qlip.attach(model, llm_positions="sequential")


@pytest.mark.parametrize(
    "text",
    [
        {"model_type": "mpt", "vocab_size": 64, "d_model": 32, "n_heads": 2, "n_layers": 1},
        {"model_type": "falcon", "alibi": True, "vocab_size": 64, "hidden_size": 32, "num_attention_heads": 4},
    ],
    ids=["mpt", "falcon"],
)
def test_attention_that_counts_tokens_takes_neither_positions_nor_a_bias(text):
    """MPT's makes True of any number in a mask, so a bias would hide its keys; Falcon's with ALiBi takes no mask."""
    kind, further = text["model_type"], {"num_hidden_layers": 1, "pad_token_id": 0, "tie_word_embeddings": False}
    model = with_text({**further, **text})
    with pytest.raises(TypeError, match=f"'{kind}' has no rotary positions, .* give llm_positions='sequential'"):
        qlip.attach(model)
    with pytest.raises(ValueError, match=rf"llm_size_bias is -0.25 .* '{kind}' takes no bias; give llm_size_bias=0"):
        qlip.attach(model, llm_positions="sequential")
    qlip.attach(model, llm_positions="sequential", llm_size_bias=0.0)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ({"model_type": "llama4_text", "num_local_experts": 2, "intermediate_size_mlp": 48}, "chunked_attention"),
        ({"model_type": "falcon_h1", "mamba_n_heads": 4, "mamba_d_ssm": 32}, "hybrid|convolutions"),
        ({"model_type": "lfm2", "layer_types": ["conv", "full_attention"], "num_hidden_layers": 2}, "conv"),
        ({"model_type": "minimax", "num_local_experts": 2, "num_hidden_layers": 2}, "linear_attention"),
    ],
    ids=lambda value: value["model_type"] if isinstance(value, dict) else "",
)
def test_layers_that_take_no_mask_with_a_bias(text, kind):
    """Their logits would be wrong without a word: a bias needs masks of our own for every layer."""
    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4}
    model = with_text({**sizes, "num_key_value_heads": 2, "pad_token_id": 0, "num_hidden_layers": 4, **text})
    with pytest.raises(ValueError, match=f"'{text['model_type']}' has layers .*({kind}).* give llm_size_bias=0"):
        qlip.attach(model)
    qlip.attach(model, llm_size_bias=0.0)


def test_attentions_that_take_no_bias_or_no_padding():
    model = make_language_model("llava")
    model.config.text_config._attn_implementation = "flash_attention_2"
    with pytest.raises(ValueError, match="'flash_attention_2' takes no bias; .* llm_size_bias=0"):
        qlip.attach(model)
    qlip.attach(model, llm_size_bias=0.0)
    model = make_vision_model("clip")
    model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(ValueError, match="'flash_attention_2', which takes no padding mask"):
        qlip.attach(model)


def test_an_offloaded_tower():
    with pytest.raises(ValueError, match="offloaded; give it a device in device_map"):
        qlip.attach(make_vision_model("clip").to("meta"))
    model, processor = attached("llava", max_tokens=40)
    cpu_offload(model, execution_device="cpu")
    with pytest.raises(ValueError, match="offloaded; give it a device in device_map"):
        model(**ask(processor, PROMPTS[:1], PICTURES[:1]))


def test_settings():
    model = make_vision_model("clip")
    with pytest.raises(ValueError, match=r"unknown QLIP setting alhpa \(did you mean alpha\?\); allowed are alpha"):
        qlip.attach(model, alhpa=0.1)
    with pytest.raises(ValueError, match="alpha is -1"):
        qlip.attach(model, alpha=-1)
    with pytest.raises(TypeError, match="it must be a QLIPConfig"):
        qlip.attach(model, None, {"alpha": 0.1})
    with pytest.raises(ValueError, match="thumbnail is true; only models with a language model take it"):
        qlip.attach(model, thumbnail=True)
    with pytest.raises(TypeError, match="CLIPVisionModel is not attached"):
        qlip.detach(model)


def test_a_refused_model_stays_as_it_was():
    model, _ = qlip.attach(make_vision_model("clip"), alpha=0.3)
    with pytest.raises(ValueError, match="alpha is -1"):
        qlip.attach(model, alpha=-1)
    with pytest.raises(ValueError, match="thumbnail"):
        qlip.attach(model, thumbnail=True)
    assert model.config.qlip["alpha"] == 0.3
    assert model.attachment.vision.qlip.alpha == 0.3


@pytest.mark.parametrize(
    ("make", "name", "whole"),
    [
        (lambda: make_language_model("llava"), "model", "LlavaForConditionalGeneration"),
        (lambda: make_language_model("llava_next"), "model.vision_tower", "LlavaNextForConditionalGeneration"),
        (lambda: make_contrastive_model("clip"), "vision_model", "CLIPModel"),
    ],
    ids=["trunk", "tower", "vision model"],
)
@pytest.mark.parametrize("clone", [lambda model: model, copy.deepcopy], ids=["itself", "copy"])
def test_parts_of_an_attached_model(make, name, whole, clone):
    """They could not be changed alone: the model around would be left half attached."""
    model = clone(qlip.attach(make(), alpha=0.3)[0])
    inner = model.get_submodule(name)
    for act in (qlip.attach, qlip.detach):
        with pytest.raises(TypeError, match=f"is a part of an attached {whole}; attach or detach the whole"):
            act(inner)
    assert model.attachment.vision.qlip.alpha == 0.3
    model, _ = qlip.attach(model, alpha=0.4)
    model, _ = qlip.detach(model)
    with pytest.raises(TypeError, match="is not attached"):
        qlip.detach(inner)
    assert not any("attached_within" in vars(module) for module in model.modules())


@pytest.mark.parametrize("channels", [1, 4])
def test_a_tower_of_other_images_than_rgb(channels):
    with pytest.raises(ValueError, match=f"takes images of {channels} channels; QLIP prepares RGB images, of 3"):
        qlip.attach(make_vision_model("clip", num_channels=channels))


def test_a_prior_that_is_nowhere(tmp_path):
    """A checkpoint of the hub names a file of its own, which is not downloaded with it."""
    model = make_vision_model("clip")
    model.config.qlip = {"interpolation": "mlp", "mlp": "prior.safetensors"}
    model.config._name_or_path = "somebody/on-the-hub"
    with pytest.raises(
        FileNotFoundError, match=r"no MLP prior at somebody/on-the-hub/prior\.safetensors; a checkpoint of"
    ):
        qlip.attach(model)
    missing = tmp_path / "missing.safetensors"
    with pytest.raises(FileNotFoundError, match="no MLP prior at .*missing.safetensors"):
        qlip.attach(model, mlp=str(missing))
    qlip.attach(model, interpolation="bilinear")
