"""What training saves is what LLaVA saves, and it loads with equal logits: by us, by peft, merged by the script."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
from transformers import LlamaForCausalLM

from llava.constants import IMAGE_TOKEN_INDEX
from llava.model.builder import load_pretrained_model
from llava.model.language_model.llava_llama import LlavaLlamaForCausalLM
from llava.train.saving import load_trained
from scripts import merge_lora_weights
from tests.llava.checkpoints import PICTURE, logits
from tests.llava.train.handwritten import write_data
from tests.llava.train.runs import train_on, write_text_model

CHECKPOINTS = {"save_strategy": "steps", "save_steps": 1}
PARTS = {"mm_projector_type": "mlp2x_gelu", "mm_vision_select_layer": -2, "image_aspect_ratio": "pad"}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_data(folder, "itit")
    return folder


@pytest.fixture(scope="module")
def train(bases, data):
    """Trains two steps from the parts; the learning rate is high, so that everything trained differs clearly."""

    def train(out: Path, **flags):
        chosen = {**PARTS, "vision_tower": bases / "clip", "pretrain_mm_mlp_adapter": bases / "mm_projector.bin"}
        chosen |= {"per_device_train_batch_size": 2, "learning_rate": 1e-2}
        return train_on(bases / "vicuna", data, out, **{**chosen, **flags})

    return train


def names(folder: Path) -> set[str]:
    return {file.name for file in folder.iterdir() if file.is_file()}


def load(folder: Path, base: Path | None = None, **options):
    _, model, _, _ = load_pretrained_model(folder, base, device="cpu", **options)
    return model.eval()


def bare(trainer):
    model = trainer.accelerator.unwrap_model(trainer.model).eval()
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def test_the_projector_alone(bases, tmp_path, train):
    trainer = train(tmp_path, tune_mm_mlp_adapter=True, qlip=True, **CHECKPOINTS)
    assert names(tmp_path) == {"config.json", "mm_projector.bin", "trainer_state.json"}
    assert {"config.json", "mm_projector.bin", "optimizer.pt", "trainer_state.json"} <= names(tmp_path / "checkpoint-1")
    state = torch.load(tmp_path / "mm_projector.bin", weights_only=True)
    assert sorted(state) == [f"model.mm_projector.{i}.{kind}" for i in (0, 2) for kind in ("bias", "weight")]
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["use_cache"] and config["tune_mm_mlp_adapter"] and config["qlip"] is True
    model = load(tmp_path, bases / "vicuna")
    torch.testing.assert_close(logits(model), logits(bare(trainer)), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(logits(model), logits(load(tmp_path / "checkpoint-1", bases / "vicuna")), atol=1e-2)


def test_the_embeddings_of_image_marks(bases, tmp_path, train):
    chosen = {"mm_use_im_start_end": True, "pretrain_mm_mlp_adapter": None, "qlip": False}
    trainer = train(tmp_path / "out", tune_mm_mlp_adapter=True, **chosen)
    state = torch.load(tmp_path / "out" / "mm_projector.bin", weights_only=True)
    assert "model.embed_tokens.weight" in state
    assert json.loads((tmp_path / "out" / "config.json").read_text())["qlip"] is False
    model = load(tmp_path / "out", bases / "vicuna")
    # What the output layer says of the marks themselves is neither trained nor saved, as in LLaVA.
    ours, wanted = (logits(one)[..., :360] for one in (model, bare(trainer)))
    torch.testing.assert_close(ours, wanted, atol=1e-5, rtol=1e-5)


def test_the_whole_model(tmp_path, train):
    trainer = train(tmp_path, unfreeze_mm_vision_tower=True, **CHECKPOINTS)
    wanted = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.model", "tokenizer_config.json"}
    for folder in (tmp_path, tmp_path / "checkpoint-1"):
        assert wanted | {"training_args.bin", "trainer_state.json"} <= names(folder)
        weights = load_file(folder / "model.safetensors")
        assert "model.vision_tower.vision_tower.vision_model.embeddings.class_embedding" in weights
        assert json.loads((folder / "config.json").read_text())["use_cache"]
    torch.testing.assert_close(logits(load(tmp_path)), logits(bare(trainer)), atol=1e-5, rtol=1e-5)


def test_a_whole_model_is_saved_in_the_dtype_that_it_computed_in(tmp_path, train):
    """But checkpoints keep the float32 weights, without which a run could not continue exactly."""
    train(tmp_path, bf16=True, **CHECKPOINTS)
    assert {tensor.dtype for tensor in load_file(tmp_path / "model.safetensors").values()} == {torch.bfloat16}
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["torch_dtype"] == config["dtype"] == "bfloat16"
    kept = load_file(tmp_path / "checkpoint-1" / "model.safetensors")
    assert kept["model.layers.0.mlp.up_proj.weight"].dtype == torch.float32


def test_tied_weights_are_written_once(tmp_path, train):
    train(tmp_path / "out", model_name_or_path=write_text_model(tmp_path / "qwen2", "qwen2"), bf16=True)
    weights = load_file(tmp_path / "out" / "model.safetensors")
    assert "model.embed_tokens.weight" in weights and "lm_head.weight" not in weights
    model = load(tmp_path / "out")
    assert torch.equal(model.lm_head.weight, model.get_input_embeddings().weight)


LORA = {"lora_enable": True, "lora_r": 4, "lora_alpha": 16}


@pytest.mark.parametrize("flags", [{"lora_bias": "all"}, {"unfreeze_mm_vision_tower": True, "qlip": True}])
def test_adapters(bases, tmp_path, train, flags):
    trainer = train(tmp_path / "llava-lora", **LORA, **flags, **CHECKPOINTS)
    out = tmp_path / "llava-lora"
    for folder in (out, out / "checkpoint-1"):
        files = {"adapter_config.json", "adapter_model.safetensors", "config.json", "non_lora_trainables.bin"}
        assert files <= names(folder)
    others = torch.load(out / "non_lora_trainables.bin", weights_only=True)
    assert "base_model.model.model.mm_projector.0.weight" in others
    tower = {name for name in others if "vision_tower" in name}
    assert bool(tower) == bool(flags.get("unfreeze_mm_vision_tower"))
    prefix = "base_model.model.model.vision_tower.vision_tower.vision_model."  # LLaVA's own loader ignores other names
    assert all(name.startswith(prefix) for name in tower)
    expected = logits(bare(trainer))
    loaded = load(out, bases / "vicuna")
    torch.testing.assert_close(logits(loaded), expected, atol=1e-4, rtol=1e-4)
    merge = ["--model-path", str(out), "--model-base", str(bases / "vicuna"), "--dtype", "float32"]
    assert merge_lora_weights.main([*merge, "--save-model-path", str(tmp_path / "merged")]) == 0
    torch.testing.assert_close(logits(load(tmp_path / "merged")), expected, atol=1e-4, rtol=1e-4)


def test_frozen_weights_that_the_base_lacks_are_in_an_adapters_checkpoint(bases, tmp_path, train):
    """A projector and embeddings of <im_start> that a first stage trained, and adapters beside them."""
    marks = {"mm_use_im_start_end": True}
    train(tmp_path / "stage1", tune_mm_mlp_adapter=True, pretrain_mm_mlp_adapter=None, **marks)
    adapter = tmp_path / "stage1" / "mm_projector.bin"
    frozen = {"freeze_mm_mlp_adapter": True, "pretrain_mm_mlp_adapter": adapter}
    trainer = train(tmp_path / "llava-lora", **LORA, **marks, **frozen)
    loaded, first = load(tmp_path / "llava-lora", bases / "vicuna"), torch.load(adapter, weights_only=True)
    table = loaded.get_input_embeddings().weight[360:]  # the marks
    torch.testing.assert_close(table, first["model.embed_tokens.weight"][360:], atol=0, rtol=0)
    projector = loaded.get_model().mm_projector[0].weight
    torch.testing.assert_close(projector, first["model.mm_projector.0.weight"], atol=0, rtol=0)
    torch.testing.assert_close(logits(loaded)[..., :360], logits(bare(trainer))[..., :360], atol=1e-4, rtol=1e-4)


def test_a_whole_model_normalises_images_as_its_tower_did(bases, tmp_path, train):
    """Not as CLIP does by default: the tower's own folder is not needed any more."""
    shutil.copytree(bases / "clip", tmp_path / "clip")
    file = tmp_path / "clip" / "preprocessor_config.json"
    values = json.loads(file.read_text()) | {"image_mean": [0.5] * 3, "image_std": [0.25] * 3}
    file.write_text(json.dumps(values))
    train(tmp_path / "out", vision_tower=tmp_path / "clip")
    shutil.rmtree(tmp_path / "clip")
    processor = load(tmp_path / "out").get_vision_tower().native_processor
    assert (list(processor.image_mean), list(processor.image_std)) == ([0.5] * 3, [0.25] * 3)


@pytest.mark.parametrize(("flags", "rows"), [(LORA, 360), (LORA, 384), ({"tune_mm_mlp_adapter": True}, 384)])
def test_tokens_that_training_adds(bases, tmp_path, train, flags, rows):
    """[PAD], <im_start> and <im_end> have the ids and rows of training, whether the base has rows to spare or not."""
    base = LlamaForCausalLM.from_pretrained(bases / "vicuna")
    base.resize_token_embeddings(rows)
    base.save_pretrained(tmp_path / "vicuna")
    for name in ("tokenizer.model", "tokenizer_config.json"):
        shutil.copy(bases / "vicuna" / name, tmp_path / "vicuna")
    chosen = {"model_name_or_path": tmp_path / "vicuna", "version": "v0", "mm_use_im_start_end": True, **flags}
    trainer = train(tmp_path / "out", pretrain_mm_mlp_adapter=None, **chosen)
    tokenizer, model, _, _ = load_pretrained_model(tmp_path / "out", tmp_path / "vicuna", device="cpu")
    added = trainer.processing_class.get_added_vocab()
    assert tokenizer.get_added_vocab() == added
    start, end = added["<im_start>"], added["<im_end>"]
    prompt = torch.tensor([[1, 20, start, IMAGE_TOKEN_INDEX, end, 30]])
    with torch.no_grad():
        expected = bare(trainer)(prompt, images=PICTURE).logits
        torch.testing.assert_close(model.eval()(prompt, images=PICTURE).logits, expected, atol=1e-4, rtol=1e-4)


def test_peft_alone_reads_the_adapters(bases, tmp_path, train):
    """As LLaVA loads them: the base with the tower, its other trained weights, then peft's own loader."""
    trainer = train(tmp_path / "lora", **LORA)
    values = json.loads((tmp_path / "lora" / "adapter_config.json").read_text())
    assert sorted(values["target_modules"]) == [
        "down_proj",
        "gate_proj",
        "k_proj",
        "o_proj",
        "q_proj",
        "up_proj",
        "v_proj",
    ]
    assert values["r"] == 4 and values["peft_type"] == "LORA" and "exclude_modules" not in values
    language = LlavaLlamaForCausalLM.from_pretrained(bases / "vicuna")  # without a tower, whose layers have these names
    tuned = PeftModel.from_pretrained(language, tmp_path / "lora").merge_and_unload().eval()
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        torch.testing.assert_close(tuned(ids).logits, bare(trainer)(ids).logits, atol=1e-5, rtol=1e-5)


def test_quantised_training_saves_adapters_that_load_on_the_base(bases, tmp_path, train):
    train(tmp_path / "qlora", **LORA, bits=4, bf16=True)
    four = load(tmp_path / "qlora", bases / "vicuna")
    assert torch.isfinite(logits(four)).all()


def test_a_projector_of_another_shape_is_refused(tmp_path):
    torch.save({"weight": torch.zeros(2, 3)}, tmp_path / "mm_projector.bin")
    with pytest.raises(ValueError, match=r"holds 'weight' of shape \(2, 3\); the model has of shape \(3, 2\) there"):
        load_trained(torch.nn.Linear(2, 3), tmp_path / "mm_projector.bin")


@pytest.fixture
def mesh(tmp_path):
    distributed.init_process_group("gloo", f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        yield init_device_mesh("cpu", (1,))
    finally:
        distributed.destroy_process_group()


def test_weights_are_read_into_the_shards_of_fsdp(tmp_path, mesh):
    """In the dtype of the model, whose whole tensors are then those of the file."""
    saved = {"weight": torch.arange(6.0).view(3, 2), "bias": torch.arange(3.0)}
    torch.save({name: tensor.bfloat16() for name, tensor in saved.items()}, tmp_path / "mm_projector.bin")
    layer = torch.nn.Linear(2, 3)
    for name, weight in list(layer.named_parameters()):
        setattr(layer, name, torch.nn.Parameter(distribute_tensor(weight.detach(), mesh, [Shard(0)])))
    load_trained(layer, tmp_path / "mm_projector.bin")
    for name, weight in layer.named_parameters():
        torch.testing.assert_close(weight.full_tensor(), saved[name], atol=0, rtol=0)
