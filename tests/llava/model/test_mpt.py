"""LLaVA on MPT: whose files it reads, what its attention (ALiBi) can't apply, batches, caches and packed rows."""

from __future__ import annotations

import argparse
import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from llava.model.builder import load_empty_tower, load_pretrained_model
from llava.model.loading.checkpoint import inspect
from llava.model.vision.image_tokens import ImageTokens
from llava.serve.engine import ChatEngine
from llava.serve.engine.params import QLIPOptions, Sampling
from llava.serve.engine.prefill import can_continue, place_prompt
from llava.serve.loading import add_model_flags, load_engine
from qlip.language_positions import ImageSpan
from tests.llava.checkpoints import write_tokenizer
from tests.llava.model.language_models import COUNTED, KINDS, LONG, PIXELS, PROMPT, make_oracle, write_checkpoint

RELEASED: dict[str, Any] = {
    "architectures": ["LlavaMptForCausalLM"],
    "model_type": "llava_mpt",
    "d_model": 4096,
    "n_heads": 32,
    "n_layers": 32,
    "expansion_ratio": 4,
    "max_seq_len": 2048,
    "vocab_size": 50282,
    "attn_config": {**KINDS["mpt"]["attn_config"], "attn_impl": "triton"},
    "emb_pdrop": 0,
    "embedding_fraction": 1.0,
    "init_config": {"name": "kaiming_normal_", "init_std": None},
    "init_device": "cpu",
    "learned_pos_emb": True,
    "logit_scale": None,
    "no_bias": True,
    "norm_type": "low_precision_layernorm",
    "resid_pdrop": 0,
    "tokenizer_name": "EleutherAI/gpt-neox-20b",
    "use_cache": False,
    "verbose": 0,
    "mm_hidden_size": 1024,
    "mm_vision_select_layer": -2,
    "mm_vision_tower": "openai/clip-vit-large-patch14",
    "use_mm_proj": True,
    "mm_use_im_start_end": True,
}
"""config.json as LLaVA's training on MPT writes it."""

LEAVES = {**COUNTED, "alpha": 0.3, "max_tokens": 40}
GREEDY = {"do_sample": False, "max_new_tokens": 6, "pad_token_id": 0, "eos_token_id": None}
PLACED = ImageSpan(4, torch.arange(4) * 2, 8, None)
WEIGHED = ImageSpan(4, None, 4, torch.full((4,), 2.0))
SHORT = [1, 20, 33]


@pytest.fixture(scope="module")
def oracle() -> Any:
    return make_oracle("mpt")


@pytest.fixture(scope="module")
def folder(oracle: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("mpt"), "mpt", oracle)


@pytest.fixture(scope="module")
def model(folder: Path) -> Any:
    return load_pretrained_model(folder, device="cpu")[1]


@pytest.fixture(scope="module")
def quadtree(folder: Path) -> tuple[Any, ...]:
    return load_pretrained_model(folder, device="cpu", qlip=LEAVES)


def write(folder: Path, **changes: Any) -> Path:
    (folder / "config.json").write_text(json.dumps({**RELEASED, **changes}))
    return folder


def noise(seed: int) -> Image.Image:
    pixels = torch.randint(0, 256, (150, 200, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return Image.fromarray(pixels.numpy())


def test_a_released_configuration_is_read(tmp_path: Path) -> None:
    config = inspect(write(tmp_path)).config
    assert (config.model_type, config.hidden_size, config.num_hidden_layers) == ("llava_mpt", 4096, 32)
    assert config.context_length == 2048
    assert config.use_cache  # or every token would run the whole prompt again
    assert inspect(write(tmp_path, tokenizer_model_max_length=4096)).config.context_length == 2048


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attn_config": {"alibi": False}}, "attn_config.alibi is False; allowed are True"),
        ({"attn_config": {"alibi_bias_max": 16}}, "attn_config.alibi_bias_max is 16; allowed are 8"),
        ({"attn_config": {"attn_type": "multiquery_attention"}}, "attn_config.attn_type is 'multiquery_attention'; .*"),
        ({"attn_config": {"attn_uses_sequence_id": True}}, "attn_config.attn_uses_sequence_id is True; .*"),
        ({"attn_config": {"prefix_lm": True}}, "attn_config.prefix_lm is True; allowed are False"),
        ({"attn_config": {"qk_ln": True}}, "attn_config.qk_ln is True; allowed are False"),
        ({"attn_config": {"rope": True}}, "attn_config.rope is True; allowed are None, False"),
        ({"alibi": False}, "alibi is False; allowed are True"),
        ({"expansion_ratio": 2}, "expansion_ratio is 2; allowed are 4"),
        ({"logit_scale": "inv_sqrt_d_model"}, "logit_scale is 'inv_sqrt_d_model'; allowed are None"),
        ({"no_bias": False}, "no_bias is False; allowed are True"),
        ({"norm_type": "rmsnorm"}, "norm_type is 'rmsnorm'; allowed are .*"),
    ],
)
def test_what_transformers_mpt_would_ignore_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=rf"config\.json: {message}$"):
        load_pretrained_model(write(tmp_path, **changes), device="cpu")


@pytest.mark.parametrize(
    ("name", "value"),
    [("llm_positions", "raster"), ("llm_size_bias", 1.0), ("llm_weight", "native"), ("budget", "question")],
)
def test_settings_that_its_attention_cannot_apply_are_refused_by_name(
    folder: Path, quadtree: tuple[Any, ...], name: str, value: Any
) -> None:
    tokenizer, model, processor, context = quadtree
    tower, message = (
        model.get_vision_tower(),
        rf"^{name} is {value!r}; allowed on MPT, .* load it with qlip={{'llm_positions': 'seq",
    )
    settings = replace(tower.settings, **{name: value})
    for load in (load_pretrained_model, load_empty_tower):
        with pytest.raises(ValueError, match=message):
            load(folder, qlip=settings, **({"device": "cpu"} if load is load_pretrained_model else {}))
    with pytest.raises(ValueError, match=message):
        tower.settings = settings
    with pytest.raises(ValueError, match=message):
        tower.encode(list(PIXELS), settings=settings)
    assert tower.settings.llm_positions == "sequential"
    engine = ChatEngine(tokenizer, model, processor, context, "mpt")
    if name in {field.name for field in fields(QLIPOptions)}:
        with pytest.raises(ValueError, match=message):
            engine.vision.settings(QLIPOptions(**{name: value}))
    engine.close()


def test_a_checkpoint_that_names_such_settings_is_refused(folder: Path, tmp_path: Path) -> None:
    values = json.loads((folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**values, "qlip": True}))
    (tmp_path / "model.safetensors").symlink_to(folder / "model.safetensors")
    write_tokenizer(tmp_path)
    with pytest.raises(ValueError, match="llm_positions is 'raster'; allowed on MPT"):
        load_pretrained_model(tmp_path, device="cpu")
    assert load_pretrained_model(tmp_path, device="cpu", qlip=False)[1].config.model_type == "llava_mpt"


@pytest.mark.parametrize(
    "span", [ImageSpan(4, torch.arange(4) * 2, 8, None), ImageSpan(4, None, 4, torch.full((4,), 2))]
)
def test_tokens_with_positions_or_weights_from_elsewhere_are_refused(model: Any, span: ImageSpan) -> None:
    images = [ImageTokens(torch.zeros(4, 64), span)]
    with pytest.raises(ValueError, match="positions or weights, which MPT's attention .* llm_positions='sequential'"):
        model(torch.tensor([PROMPT[:4]]), images=images)
    with pytest.raises(ValueError, match="positions or weights, which MPT's attention"):
        place_prompt(model, torch.tensor(PROMPT[:4]), images)


@pytest.mark.parametrize("given", [{"key_bias": torch.ones(1, 3)}, {"position_ids": torch.tensor([[0.0, 1.0, 1.5]])}])
def test_a_bias_or_fractions_that_a_caller_gives_are_refused(model: Any, given: dict[str, torch.Tensor]) -> None:
    with pytest.raises(ValueError, match="weights or fractional positions, which the attention of 'llava_mpt' can't"):
        model(torch.tensor([SHORT]), **given)


@torch.no_grad()
def test_leaves_count_one_by_one_as_text_does(oracle: Any, quadtree: tuple[Any, ...]) -> None:
    model = quadtree[1]
    images = model.encode_tokens([torch.randn(3, 112, 168, generator=torch.Generator().manual_seed(3)), PIXELS[1]])
    assert len({len(image.features) for image in images}) == 2 and len(images[0].features) < 64
    table, parts = oracle.get_input_embeddings(), iter(images)
    embeds = [next(parts).features if token < 0 else table(torch.tensor([token])) for token in PROMPT]
    expected = oracle.model.language_model(inputs_embeds=torch.cat(embeds)[None]).last_hidden_state
    got = model(torch.tensor([PROMPT]), images=images).logits
    torch.testing.assert_close(got, oracle.lm_head(expected), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"use_cache": False}], ids=["greedy", "beams", "no cache"])
@torch.no_grad()
def test_rows_of_a_batch_are_answered_as_transformers_answers_them_alone(
    oracle: Any, model: Any, options: dict[str, Any]
) -> None:
    ids, mask = torch.tensor([PROMPT, [0] * 4 + SHORT]), torch.tensor([[1] * 7, [0] * 4 + [1] * 3])
    got = model.generate(ids, images=PIXELS, attention_mask=mask, **GREEDY, **options)
    own = {"num_beams": options.get("num_beams", 1), "use_cache": True}
    for row, tokens, pixels in ((0, LONG, {"pixel_values": PIXELS}), (1, SHORT, {})):
        alone = torch.tensor([tokens])
        expected = oracle.generate(input_ids=alone, attention_mask=torch.ones_like(alone), **pixels, **GREEDY, **own)
        assert got[row].tolist() == expected[0, len(tokens) :].tolist()


@torch.no_grad()
def test_packed_prompts_have_the_logits_of_prompts_alone(model: Any) -> None:
    ids, mask = torch.tensor([PROMPT, SHORT + [0] * 4]), torch.tensor([[1] * 7, [1] * 3 + [0] * 4])
    got = model(ids, attention_mask=mask, images=PIXELS, packs=torch.tensor([0, 0])).logits[0]
    alone = [model(torch.tensor([PROMPT]), images=PIXELS).logits[0], model(torch.tensor([SHORT])).logits[0]]
    torch.testing.assert_close(got, torch.cat(alone), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("enabled", [True, False], ids=["quadtree", "uniform grid"])
def test_answers_that_join_a_running_batch_are_those_of_questions_alone(
    quadtree: tuple[Any, ...], enabled: bool
) -> None:
    tokenizer, model, processor, context = quadtree
    assert can_continue(model)
    engine = ChatEngine(tokenizer, model, processor, context, "mpt", quadtree=enabled)
    asked = [("What is in the picture?", [noise(0)]), ("What?", []), ("And which of the two?", [noise(1), noise(2)])]
    sampling = Sampling(temperature=0, max_new_tokens=8)

    def ask(text: str, images: list[Image.Image]) -> Any:
        return engine.submit(engine.question(text, len(images)), images, sampling)

    alone = ["".join(ask(*question)) for question in asked]
    together = [ask(*question) for question in asked]
    assert ["".join(answer) for answer in together] == alone
    engine.close()
    plain = ChatEngine(tokenizer, model, processor, context, "mpt", quadtree=enabled, joins=False)
    for (text, images), answer in zip(asked, alone, strict=True):
        assert "".join(plain.submit(plain.question(text, len(images)), images, sampling)) == answer
    plain.close()


def test_a_projector_of_llavas_training_has_mpts_names(folder: Path, model: Any, tmp_path: Path) -> None:
    """Its file of stage 1 says `transformer.mm_projector`."""
    state = {name: 2 * tensor for name, tensor in model.state_dict().items() if "mm_projector" in name}
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    theirs = {name.replace("model.", "transformer."): tensor for name, tensor in state.items()}
    torch.save(theirs, tmp_path / "mm_projector.bin")
    loaded = load_pretrained_model(tmp_path, folder, device="cpu")[1].state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in state.items())


@pytest.mark.parametrize("flags", [[], ["--no-qlip"]], ids=str)
def test_a_server_starts_with_clips_grid_and_takes_the_quadtree_on_request(folder: Path, flags: list[str]) -> None:
    """A server's tower runs both; MPT's settings of the quadtree are then those that it can apply."""
    parser = argparse.ArgumentParser()
    add_model_flags(parser)
    engine = load_engine(parser.parse_args(["--model-path", str(folder), "--device", "cpu", *flags]), switchable=True)
    picture = Image.new("RGB", (448, 448), "white")
    picture.paste("black", (100, 100, 112, 112))
    tokens = []
    for options in (None, QLIPOptions(enabled=True, max_tokens=90)):
        answer = engine.submit(engine.question("What?", 1), [picture], Sampling(0, max_new_tokens=2), options)
        "".join(answer)
        tokens.append(answer.usage.visual_tokens)
    engine.close()
    assert tokens[0] == 64 < tokens[1] <= 90
