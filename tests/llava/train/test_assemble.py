"""The model to train: joined from parts or a LLaVA checkpoint, frozen, adapted and converted as the flags say."""

from __future__ import annotations

import json
import shutil
from itertools import cycle

import pytest
import torch

from llava.conversation import conv_templates
from llava.train import checks
from llava.train.arguments import parse_arguments
from llava.train.assemble import assemble
from llava.train.lora import find_all_linear_names
from tests.llava.checkpoints import PICTURE, PROMPT, logits, oracle_logits, transformers_model, write_tokenizer

PARTS = (
    "--model_name_or_path {0}/vicuna --vision_tower {0}/clip --mm_projector_type mlp2x_gelu --mm_vision_select_layer -2"
    " --mm_use_im_patch_token False --version v1 --pretrain_mm_mlp_adapter {0}/mm_projector.bin"
)
LLAVA = "--model_name_or_path {0}/llava"
LAYERS = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]


@pytest.fixture
def build(bases):
    def build(flags: str):
        needed = "--output_dir out --data_path data.json --use_cpu True --report_to none "
        return assemble(parse_arguments((needed + flags).format(bases).split()))

    return build


def trained(model) -> set[str]:
    """The parts that are trained: "embed_tokens", "layers", "norm", "lm_head", "mm_projector", "vision_tower"."""
    names = [name for name, weight in model.named_parameters() if weight.requires_grad]
    return {name.replace("base_model.model.", "").removeprefix("model.").partition(".")[0] for name in names}


@pytest.mark.parametrize("base", [PARTS, LLAVA], ids=["parts", "checkpoint"])
def test_the_logits_are_those_of_transformers(build, base):
    _, model, _ = build(base)
    torch.testing.assert_close(logits(model.eval()), oracle_logits(transformers_model()), atol=1e-4, rtol=1e-4)


LANGUAGE = {"embed_tokens", "layers", "norm", "lm_head"}
MODES = [
    ("", LANGUAGE | {"mm_projector"}),
    ("--freeze_mm_mlp_adapter True", LANGUAGE),
    ("--freeze_backbone True", {"lm_head", "mm_projector"}),
    ("--tune_mm_mlp_adapter True", {"mm_projector"}),
    ("--unfreeze_mm_vision_tower True", LANGUAGE | {"mm_projector", "vision_tower"}),
    ("--lora_enable True", {"layers", "mm_projector"}),
    ("--lora_enable True --freeze_mm_mlp_adapter True", {"layers"}),
    ("--lora_enable True --freeze_backbone True", {"layers", "mm_projector"}),
    ("--lora_enable True --unfreeze_mm_vision_tower True", {"layers", "mm_projector", "vision_tower"}),
    ("--lora_enable True --bits 8", {"layers", "mm_projector"}),
]


@pytest.mark.parametrize(("base", "mode"), zip(cycle((PARTS, LLAVA)), MODES))
def test_what_is_trained(build, base, mode):
    flags, parts = mode
    assert trained(build(f"{base} {flags}")[1]) == parts


@pytest.mark.parametrize("base", [PARTS, LLAVA], ids=["parts", "checkpoint"])
def test_adapters_are_on_the_language_models_layers_alone(build, base):
    _, model, _ = build(f"{base} --lora_enable True --lora_r 8 --lora_alpha 32 --lora_dropout 0.1")
    adapted = {name.partition(".lora_A")[0] for name, _ in model.named_parameters() if "lora_A" in name}
    assert len(adapted) == 2 * 7 and all(".model.layers." in name for name in adapted)
    config = model.peft_config["default"]
    assert (config.r, config.lora_alpha, config.lora_dropout, config.bias) == (8, 32, 0.1, "none")


def test_the_names_of_linear_layers(build):
    assert find_all_linear_names(build(LLAVA)[1]) == LAYERS


def test_an_unfrozen_tower_is_trained_as_far_as_it_is_read(build):
    """The second to last hidden state is read: after it come the fourth of four layers and the last norm."""
    _, model, _ = build(f"{LLAVA} --unfreeze_mm_vision_tower True")
    model(PROMPT, images=PICTURE, labels=PROMPT.clamp(min=0)).loss.backward()
    tower = model.get_vision_tower()
    wanted = {name for name, weight in tower.named_parameters() if weight.requires_grad}
    assert wanted == {name for name, weight in tower.named_parameters() if weight.grad is not None}
    assert not any("layers.3." in name or "post_layernorm" in name for name in wanted) and len(wanted) > 40


@pytest.mark.parametrize(
    ("flags", "of_trained", "of_frozen"),
    [
        ("", {torch.float32}, {torch.float32}),
        ("--bf16 True", {torch.float32}, {torch.bfloat16}),
        ("--fp16 True", {torch.float32}, {torch.float16}),
        ("--bf16 True --lora_enable True", {torch.float32}, {torch.bfloat16}),
        ("--fp16 True --tune_mm_mlp_adapter True", {torch.float32}, {torch.float16}),
    ],
)
def test_trained_weights_are_float32_and_frozen_ones_compact(bases, monkeypatch, flags, of_trained, of_frozen):
    monkeypatch.setattr(checks, "check_precision", lambda training: None)  # fp16 needs a GPU to run
    given = f"--output_dir out --data_path data.json --use_cpu True --report_to none {LLAVA} {flags}"
    _, model, _ = assemble(parse_arguments(given.format(bases).split()))
    assert {weight.dtype for weight in model.parameters() if weight.requires_grad} == of_trained
    assert {weight.dtype for weight in model.parameters() if not weight.requires_grad} == of_frozen


def test_a_sharded_model_holds_its_tower(build):
    """LLaVA keeps it in a list, and a checkpoint without its weights."""
    _, model, _ = build(f"{PARTS} --fsdp full_shard --unfreeze_mm_vision_tower True")
    assert any("vision_tower" in name and weight.requires_grad for name, weight in model.named_parameters())


def test_a_base_in_transformers_format_names_no_tower(build, tmp_path):
    """It holds its own; "None" is not the name of one."""
    transformers_model().save_pretrained(tmp_path)
    write_tokenizer(tmp_path)
    assert build(f"--model_name_or_path {tmp_path}")[1].config.mm_vision_tower is None


def test_four_bits(build):
    _, model, _ = build(f"{LLAVA} --lora_enable True --bits 4 --bf16 True --quant_type fp4 --double_quant False")
    layer = model.base_model.model.model.layers[0].mlp.up_proj.base_layer
    assert layer.weight.dtype == torch.uint8 and layer.weight.quant_type == "fp4"
    assert not layer.weight.quant_state.nested
    assert model.base_model.model.model.layers[0].input_layernorm.weight.dtype == torch.float32
    assert model.base_model.model.lm_head.weight.dtype == torch.bfloat16


def test_the_quadtree_is_on_by_flag_and_off_by_default(build):
    _, model, _ = build(f"{PARTS} --qlip.alpha 0.25 --qlip.max_tokens 96")
    assert model.config.qlip == {"alpha": 0.25, "max_tokens": 96}
    assert model.get_vision_tower().settings.alpha == 0.25
    assert build(PARTS)[1].config.qlip is None


def test_a_checkpoints_own_tower_and_projector_hold_where_no_flag_is_given(build, bases, tmp_path):
    shutil.copytree(bases / "llava", tmp_path / "own")
    file = tmp_path / "own" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"mm_vision_select_layer": -3, "qlip": {"alpha": 0.5}}))
    config = build(f"--model_name_or_path {tmp_path}/own")[1].config
    assert (config.mm_vision_select_layer, config.mm_projector_type, config.qlip) == (-3, "mlp2x_gelu", {"alpha": 0.5})
    assert not config.mm_use_im_patch_token
    flags = "--qlip.max_tokens 96 --mm_vision_select_layer -2"
    _, model, _ = build(f"--model_name_or_path {tmp_path}/own {flags}")
    assert model.config.mm_vision_select_layer == model.get_vision_tower().select_layer == -2
    assert model.config.qlip == {"alpha": 0.5, "max_tokens": 96}


def test_template_aspect_and_length_are_the_flags_with_a_warning_where_the_checkpoint_has_others(build, caplog):
    _, model, template = build(LLAVA)
    assert template == conv_templates["v0"] and model.config.image_aspect_ratio == "square"
    assert "--version is not given: its default v0 replaces the checkpoint's vicuna_v1" in caplog.text
    assert "--image_aspect_ratio is not given: its default square replaces the checkpoint's pad" in caplog.text
    assert "--model_max_length is not given: its default 512 replaces the checkpoint's 2048" in caplog.text
    caplog.clear()
    _, model, template = build(f"{LLAVA} --version v1 --image_aspect_ratio pad --model_max_length 2048")
    assert template == conv_templates["v1"] and model.config.image_aspect_ratio == "pad"
    assert "replaces the checkpoint's" not in caplog.text


@pytest.mark.parametrize(("flags", "kept"), [("", "pad"), ("--image_aspect_ratio square", "square")])
def test_the_quadtree_reads_no_aspect_ratio_and_keeps_the_checkpoints(build, caplog, flags, kept):
    _, model, _ = build(f"{LLAVA} --qlip True {flags}")
    assert model.config.image_aspect_ratio == kept
    assert "--image_aspect_ratio" not in caplog.text


def test_what_config_json_says_about_training(build):
    _, model, _ = build(f"{PARTS} --model_max_length 1024 --mm_projector_lr 2e-5 --image_aspect_ratio pad")
    found = {
        "use_mm_proj": True,
        "mm_projector_type": "mlp2x_gelu",
        "mm_hidden_size": 64,
        "mm_vision_select_layer": -2,
        "mm_vision_select_feature": "patch",
        "mm_patch_merge_type": "flat",
        "image_aspect_ratio": "pad",
        "tokenizer_padding_side": "right",
        "tokenizer_model_max_length": 1024,
        "tune_mm_mlp_adapter": False,
        "freeze_mm_mlp_adapter": False,
        "mm_use_im_start_end": False,
        "mm_use_im_patch_token": False,
        "mm_projector_lr": 2e-5,
        "conv_mode": "v1",
    }
    assert {name: getattr(model.config, name) for name in found} == found
    assert build(f"{PARTS} --version plain")[1].config.conv_mode is None


@pytest.mark.parametrize(
    ("version", "pad", "rows"), [("v0", "[PAD]", 361), ("v0.5", "<unk>", 360), ("v1", "<unk>", 360)]
)
def test_the_padding_token(build, version, pad, rows):
    tokenizer, model, _ = build(f"--model_name_or_path {{0}}/vicuna --version {version}")
    assert (tokenizer.pad_token, len(tokenizer)) == (pad, rows)
    assert tokenizer.padding_side == "right" and model.get_vision_tower() is None


def test_an_unknown_template_is_refused(build):
    """LLaVA trains on Vicuna's then, which a mistyped name would not show."""
    with pytest.raises(ValueError, match="--version 'v1.5' is not a prompt template; known: .*, plain,"):
        build(f"{LLAVA} --version v1.5")


def test_image_tokens_are_added(build):
    base = "--model_name_or_path {0}/vicuna --vision_tower {0}/clip --version v1"
    tokenizer, model, _ = build(f"{base} --mm_use_im_start_end True")
    assert tokenizer.convert_tokens_to_ids(["<im_patch>", "<im_start>", "<im_end>"]) == [360, 361, 362]
    assert model.config.mm_use_im_start_end and model.config.mm_use_im_patch_token


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--model_name_or_path {0}/vicuna --tune_mm_mlp_adapter True", "--tune_mm_mlp_adapter needs a vision tower"),
        ("--model_name_or_path {0}/vicuna --qlip", "--qlip needs a vision tower"),
        ("--model_name_or_path {0}/llava --mm_projector_type linear", "has a 'mlp2x_gelu' projector; leave the flag"),
        ("--model_name_or_path {0}/nowhere/at/all", "there is no checkpoint folder"),
        (PARTS + " --mm_projector_type mlp3x_gelu", "mm_projector.bin is not a 'mlp3x_gelu' projector"),
    ],
)
def test_what_cannot_be_trained(build, flags, message):
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        build(flags)
    assert message in str(error.value)
