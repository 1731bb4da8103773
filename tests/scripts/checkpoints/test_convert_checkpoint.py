"""scripts.convert_checkpoint: both ways, the same model in both formats, and back bit by bit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoProcessor, CLIPImageProcessorPil, LlavaForConditionalGeneration

import qlip
from llava.constants import IMAGE_TOKEN_INDEX
from llava.conversation import conv_templates
from llava.mm_utils import process_images, tokenizer_image_token
from llava.model.builder import load_pretrained_model
from llava.utils import demo_model_path
from scripts.checkpoints.formats import convert
from scripts.convert_checkpoint import main
from tests.llava.checkpoints import VISION, make_llava_checkpoint, transformers_model, write_tokenizer
from tests.qlip.integrations.models import make_language_model, picture

SETTINGS = {"alpha": 0.5, "criterion": "gradient", "coarsest": "any", "max_tokens": 90}
GREEDY = {"do_sample": False, "max_new_tokens": 8}


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def assert_same_files(one: Path, other: Path) -> None:
    """Every tensor bit by bit under the same names in the same files; every small file byte by byte."""
    assert {file.name for file in one.iterdir()} == {file.name for file in other.iterdir()}
    for file in one.iterdir():
        if file.suffix == ".safetensors":
            before, after = load_file(file), load_file(other / file.name)
            assert before.keys() == after.keys()
            for name, tensor in before.items():
                assert tensor.dtype == after[name].dtype
                assert torch.equal(tensor, after[name])
        elif file.name == "config.json" or file.name.endswith(".index.json"):
            assert json.loads(file.read_text()) == json.loads((other / file.name).read_text())
        else:
            assert file.read_bytes() == (other / file.name).read_bytes()


def shard(folder: Path, count: int) -> None:
    """Splits model.safetensors, as large checkpoints are; one shard with an index is what some training writes."""
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names, where = sorted(state), {}
    for number in range(count):
        file, own = f"model-{number + 1:05d}-of-{count:05d}.safetensors", names[number::count]
        save_file({key: state[key] for key in own}, folder / file, {"format": "pt"})
        where.update(dict.fromkeys(own, file))
    size = sum(file.stat().st_size for file in folder.glob("model*.safetensors"))
    index = {"metadata": {"total_size": size}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def llava_checkpoint(folder: Path) -> Path:
    """Vocabulary rows for the tokenizer's tokens only, as LLaVA has them: none for <image>."""
    make_llava_checkpoint(folder, qlip=SETTINGS, conv_mode="vicuna_v1")
    state = load_file(folder / "model.safetensors")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        state[name] = state[name][:360].contiguous()
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "vocab_size": 360}))
    square = {"height": 112, "width": 112}
    CLIPImageProcessorPil(size={"shortest_edge": 112}, crop_size=square).save_pretrained(folder)
    return folder


def transformers_checkpoint(folder: Path) -> Path:
    model = transformers_model()
    model.config.qlip = SETTINGS
    model.save_pretrained(folder)
    write_tokenizer(folder)
    return folder


@pytest.mark.parametrize(
    ("make", "shards"),
    [(llava_checkpoint, 1), (llava_checkpoint, 2), (transformers_checkpoint, 0), (transformers_checkpoint, 2)],
)
def test_there_and_back_is_bit_exact(tmp_path, make, shards):
    source = make(tmp_path / "source")
    if shards:
        shard(source, shards)
    there = convert(str(source), tmp_path / "there")
    back = convert(str(tmp_path / "there"), tmp_path / "back")
    assert {there, back} == {"llava", "transformers"}
    load_pretrained_model(tmp_path / "there", device="cpu")
    assert_same_files(source, tmp_path / "back")


def tie(folder: Path, keep_head: bool = False) -> None:
    """Makes the output layer the embeddings; as saved by transformers, only the latter are in the file."""
    state = load_file(folder / "model.safetensors")
    head = next(name for name in state if name.endswith("lm_head.weight"))
    if keep_head:
        state[head] = state["model.embed_tokens.weight"].clone()
    else:
        del state[head]
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["tie_word_embeddings"] = True
    if "text_config" in config:
        config["text_config"]["tie_word_embeddings"] = True
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("make", [llava_checkpoint, transformers_checkpoint])
@torch.no_grad()
def test_tied_embeddings_stay_tied(tmp_path, make):
    source = make(tmp_path / "source")
    tie(source)
    convert(str(source), tmp_path / "there")
    convert(str(tmp_path / "there"), tmp_path / "back")
    assert_same_files(source, tmp_path / "back")
    folders = {"llava": source, "transformers": tmp_path / "there"}
    if make is transformers_checkpoint:
        folders = {"llava": tmp_path / "there", "transformers": source}
    _, ours, _, _ = load_pretrained_model(str(folders["llava"]), device="cpu", qlip=False)
    theirs, report = LlavaForConditionalGeneration.from_pretrained(folders["transformers"], output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    ids = torch.tensor([[1, 20, 30]])
    expected = ours(ids).logits
    torch.testing.assert_close(theirs(ids).logits[..., : expected.shape[-1]], expected, atol=1e-4, rtol=0)


def test_a_tied_output_layer_that_was_in_the_file_comes_back(tmp_path):
    """transformers writes one of the two equal tensors; the way back writes both again."""
    source = llava_checkpoint(tmp_path / "source")
    tie(source, keep_head=True)
    convert(str(source), tmp_path / "there")
    model = LlavaForConditionalGeneration.from_pretrained(tmp_path / "there")
    model.save_pretrained(tmp_path / "there")
    assert not any("lm_head" in name for name in tensors(tmp_path / "there"))
    convert(str(tmp_path / "there"), tmp_path / "back")
    assert_same_files(source, tmp_path / "back")


def test_the_embedded_model_survives_both_ways(tmp_path):
    convert(str(demo_model_path()), tmp_path / "there")
    convert(str(tmp_path / "there"), tmp_path / "back")
    assert_same_files(demo_model_path(), tmp_path / "back")


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """(LLaVA's format, the same in transformers')."""
    folder = tmp_path_factory.mktemp("convert")
    source = llava_checkpoint(folder / "llava")
    assert convert(str(source), folder / "transformers") == "transformers"
    return source, folder / "transformers"


@torch.no_grad()
def test_transformers_reads_the_model_and_answers_as_llava_does(converted):
    """Pictures padded to a square, the prompt by the chat template, the text that comes out."""
    source, target = converted
    tokenizer, ours, image_processor, _ = load_pretrained_model(str(source), device="cpu", qlip=False)
    theirs, report = LlavaForConditionalGeneration.from_pretrained(target, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    processor = AutoProcessor.from_pretrained(target, backend="pil")
    image = picture(90, 150)
    content = [{"type": "image", "image": image}, {"type": "text", "text": "what is it?"}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    pixels = process_images([image], image_processor, ours.config)
    torch.testing.assert_close(inputs["pixel_values"], pixels, atol=1e-5, rtol=0)
    length, image_token = inputs["input_ids"].shape[1], theirs.config.image_token_id
    ids = inputs["input_ids"][0]
    first = int((ids == image_token).nonzero()[0])
    short = torch.cat([ids[:first], torch.tensor([IMAGE_TOKEN_INDEX]), ids[first + 64 :]])[None]
    expected = ours(short, images=pixels).logits
    torch.testing.assert_close(theirs(**inputs).logits[..., :360], expected, atol=1e-4, rtol=0)
    answer = theirs.generate(**inputs, **GREEDY)[0, length:]
    assert torch.equal(answer, ours.generate(short, images=pixels, **GREEDY)[0])
    assert (theirs(**inputs).logits[..., 360:] <= expected.max(-1, keepdim=True).values).all()


def test_the_chat_template_is_the_conversations(converted):
    processor = AutoProcessor.from_pretrained(converted[1], backend="pil")
    conversation = conv_templates["vicuna_v1"].copy()
    turns = [("user", "hello"), ("assistant", "good day"), ("user", 'a "quoted" word')]
    for role, text in turns:
        conversation.append_message(conversation.roles[role == "assistant"], text)
    conversation.append_message(conversation.roles[1], None)
    messages = [{"role": role, "content": [{"type": "text", "text": text}]} for role, text in turns]
    assert processor.apply_chat_template(messages, add_generation_prompt=True) == conversation.get_prompt()
    ids = processor(text=conversation.get_prompt())["input_ids"][0]
    tokenizer = load_pretrained_model(str(converted[0]), device="cpu")[0]
    assert list(ids) == tokenizer_image_token(conversation.get_prompt(), tokenizer)


@torch.no_grad()
def test_the_flag_goes_with_it(converted):
    """Attached without a word, the converted checkpoint answers as llava's quadtree does."""
    source, target = converted
    _, ours, image_processor, _ = load_pretrained_model(str(source), device="cpu")
    model, processor = qlip.attach(
        LlavaForConditionalGeneration.from_pretrained(target), AutoProcessor.from_pretrained(target, backend="pil")
    )
    assert model.config.qlip == {**qlip.QLIPConfig(**SETTINGS).to_dict()}
    image = picture(112, 224, 5)
    inputs = processor(images=[image], text=["<image>\nwhat is it?"], return_tensors="pt")
    ids = inputs["input_ids"][0]
    short = [i for i in ids.tolist() if i != model.config.image_token_id]
    short.insert(ids.tolist().index(model.config.image_token_id), IMAGE_TOKEN_INDEX)
    pixels = process_images([image], image_processor, ours.config)
    expected = ours.generate(torch.tensor([short]), images=pixels, **GREEDY)
    assert torch.equal(model.generate(**inputs, **GREEDY)[:, len(ids) :], expected)


@torch.no_grad()
def test_a_checkpoint_of_transformers_alone_becomes_llavas(tmp_path):
    oracle = transformers_model()
    source = transformers_checkpoint(tmp_path / "source")
    assert convert(str(source), tmp_path / "llava") == "llava"
    config = json.loads((tmp_path / "llava" / "config.json").read_text())
    assert config["qlip"] == SETTINGS
    assert config["architectures"] == ["LlavaLlamaForCausalLM"]
    with safe_open(tmp_path / "llava" / "model.safetensors", "pt") as file:
        assert "model.vision_tower.vision_tower.vision_model.pre_layrnorm.weight" in file.keys()  # noqa: SIM118
        assert "model.mm_projector.2.bias" in file.keys()  # noqa: SIM118
    _, model, _, _ = load_pretrained_model(str(tmp_path / "llava"), device="cpu", qlip=False)
    image = torch.randn(1, 3, 112, 112, generator=torch.Generator().manual_seed(0))
    long = torch.tensor([[1, 20, *[oracle.config.image_token_id] * 64, 30]])
    expected = oracle(long, pixel_values=image, attention_mask=torch.ones_like(long)).logits
    got = model(torch.tensor([[1, 20, IMAGE_TOKEN_INDEX, 30]]), images=image).logits
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=0)


def test_what_was_trained_in_between_comes_back_changed(converted, tmp_path):
    """The way back takes today's weights and flag, under whatever names transformers wrote them."""
    source, target = converted
    model = LlavaForConditionalGeneration.from_pretrained(target)
    with torch.no_grad():
        model.model.multi_modal_projector.linear_1.weight += 1
    model.config.qlip = {**SETTINGS, "alpha": 0.25}
    shutil.copytree(target, tmp_path / "trained")
    model.save_pretrained(tmp_path / "trained")
    convert(str(tmp_path / "trained"), tmp_path / "back")
    before, after = tensors(source), tensors(tmp_path / "back")
    changed = {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}
    assert changed == {"model.mm_projector.0.weight"}
    assert json.loads((tmp_path / "back" / "config.json").read_text())["qlip"]["alpha"] == 0.25


def test_the_prior_goes_with_it(tmp_path):
    name = "priors/a.safetensors"
    source = make_llava_checkpoint(tmp_path / "source", qlip={"interpolation": "mlp", "mlp": name})
    (source / name).parent.mkdir(exist_ok=True)
    qlip.CoordinateMLP(VISION["hidden_size"], hidden=8).save(source / name)
    convert(str(source), tmp_path / "there")
    model, _ = qlip.attach(LlavaForConditionalGeneration.from_pretrained(tmp_path / "there"))
    assert model.attachment.vision.prior is not None
    convert(str(tmp_path / "there"), tmp_path / "back")
    assert (tmp_path / "back" / name).read_bytes() == (source / name).read_bytes()
    load_pretrained_model(tmp_path / "back", device="cpu")


def test_a_siglip_tower_keeps_all_its_patches_both_ways(tmp_path):
    source = tmp_path / "source"
    model = make_language_model("llava_siglip")
    model.save_pretrained(source)
    write_tokenizer(source)
    convert(str(source), tmp_path / "llava")
    config = json.loads((tmp_path / "llava" / "config.json").read_text())
    assert config["mm_vision_config"]["model_type"] == "siglip_vision_model"
    shutil.rmtree(tmp_path / "llava" / "original")
    convert(str(tmp_path / "llava"), tmp_path / "again")
    strategy = json.loads((tmp_path / "again" / "config.json").read_text())["vision_feature_select_strategy"]
    assert strategy == "full"
    again = LlavaForConditionalGeneration.from_pretrained(tmp_path / "again")
    image = torch.randn(1, 3, 56, 56, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = model.get_image_features(image).pooler_output[0]
        assert torch.equal(again.get_image_features(image).pooler_output[0], expected)


def test_command_line(tmp_path, capsys):
    source = llava_checkpoint(tmp_path / "source")
    command = ["--model-path", str(source), "--out", str(tmp_path / "out")]
    assert (main(command), capsys.readouterr().out) == (0, f"{tmp_path / 'out'}: transformers format\n")
    assert main(command) == 2
    assert f"{tmp_path / 'out'} is not empty; name another folder, or empty it\n" in capsys.readouterr().err
