"""Damaged, absent and hostile files of a checkpoint: one error that names the file, before any weight is used."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import httpx
import pytest
import torch
from huggingface_hub import constants, errors
from safetensors.torch import load_file, save_file

from llava.model.builder import load_pretrained_model
from llava.model.loading import folder as folders
from tests.llava.checkpoints import (
    llava_state,
    logits,
    make_llava_checkpoint,
    oracle_logits,
    transformers_model,
    write_config,
    write_shards,
    write_tokenizer,
    write_tower,
)


@pytest.fixture(scope="module")
def state():
    return llava_state(transformers_model())


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    return make_llava_checkpoint(tmp_path_factory.mktemp("llava"))


@pytest.fixture
def folder(tmp_path, whole) -> Path:
    """A whole checkpoint, to be damaged."""
    return Path(shutil.copytree(whole, tmp_path / "checkpoint"))


def load(folder: Path):
    return load_pretrained_model(str(folder), device="cpu")[1]


def cut(file: Path, share: float) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * share)])


@pytest.mark.parametrize("share", [0, 0.001, 0.5, 0.999])
@pytest.mark.parametrize("kind", ["whole", "shard", "bin", "bin shard"])
def test_a_weights_file_that_was_cut_short_is_named(tmp_path, state, kind, share):
    write_config(tmp_path)
    if "shard" in kind:
        suffix = ".bin" if "bin" in kind else ".safetensors"
        write_shards(tmp_path, state, suffix)
        file = next(tmp_path.glob(f"*00002-of-00002{suffix}"))
    elif kind == "bin":
        torch.save(state, file := tmp_path / "pytorch_model.bin")
    else:
        save_file(state, file := tmp_path / "model.safetensors", {"format": "pt"})
    cut(file, share)
    with pytest.raises(ValueError, match=rf"{file.name} is damaged"):
        load(tmp_path)


def test_a_pointer_of_git_lfs_is_no_weights_file(folder):
    """What `git clone` leaves where git-lfs is not installed."""
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged or cut short \(\d+ bytes\): .*; download it"):
        load(folder)


@pytest.mark.parametrize("content", [[torch.zeros(1)], {"lm_head.weight": 3}, torch.zeros(1)], ids=str)
def test_a_bin_file_holds_tensors_by_name(tmp_path, content):
    write_config(tmp_path)
    torch.save(content, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"pytorch_model\.bin holds something other than named tensors"):
        load(tmp_path)


def test_pickled_code_in_a_bin_is_never_run(tmp_path, state):
    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    write_config(tmp_path)
    torch.save({**state, "evil": Evil()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"pytorch_model\.bin .*holds Python objects, which are never loaded"):
        load(tmp_path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "name", ["../outside", "/outside", "..", "", "inner/shard", r"..\outside", ["a"], None, "{parent}/outside"]
)
@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_shards_are_read_from_inside_the_folder_only(tmp_path, state, suffix, name):
    """Though all weights are outside, whole and readable."""
    folder = tmp_path / "checkpoint"
    write_config(folder)
    index = write_shards(folder, state, suffix)
    shutil.copy(next(folder.glob(f"*00001-of-00002{suffix}")), tmp_path / "outside")
    name = name.format(parent=tmp_path) if isinstance(name, str) else name
    places = json.loads(index.read_text())["weight_map"]
    index.write_text(json.dumps({"weight_map": {**places, "lm_head.weight": name}}))
    with pytest.raises(ValueError, match=rf"{index.name} places 'lm_head\.weight' in .*; allowed are names of files"):
        load(folder)


def test_a_shard_may_be_a_link_as_in_the_hubs_cache(tmp_path, state):
    snapshot, blobs = tmp_path / "snapshots" / "1a2b", tmp_path / "blobs"
    write_config(snapshot)
    write_shards(snapshot, state, ".safetensors")
    blobs.mkdir()
    for number, file in enumerate(sorted(snapshot.iterdir())):
        file.rename(blobs / str(number))
        file.symlink_to(Path("../../blobs") / str(number))
    torch.testing.assert_close(logits(load(snapshot)), oracle_logits(transformers_model()), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", r"index\.json is not valid JSON: .*line 1"),
        ("[]", r"index\.json holds no JSON object"),
        ("{}", r"index\.json has no weight_map"),
        ('{"weight_map": []}', r"index\.json has no weight_map"),
        ('{"weight_map": {"a": "b.safetensors"}}', r"index\.json names 'b\.safetensors', which is not in the folder"),
    ],
)
def test_a_wrong_index_is_named(tmp_path, state, content, message):
    write_config(tmp_path)
    write_shards(tmp_path, state, ".safetensors").write_text(content)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        load(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[]", b"null", b'"text"'])
@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json", "generation_config.json"])
def test_a_damaged_json_file_is_named(folder, name, content):
    (folder / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name} (is not valid JSON|holds no JSON object)"):
        load(folder)


def test_absent_files_are_named(folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"holds no weights: expected model\.safetensors or pytorch_model\.bin"):
        load(folder)
    (folder / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no config\.json; expected a LLaVA checkpoint's folder"):
        load(folder)


@pytest.mark.parametrize(
    ("config", "change", "message"),
    [
        ({}, {"lm_head.weight": None}, r"lacks 1 weights of the model, for example 'lm_head\.weight'"),
        ({}, {"model.mm_projector.2.bias": None}, r"lacks the projector, model\.mm_projector\.\* .*2\.bias"),
        (
            {},
            {"model.vision_tower.vision_tower.vision_model.encoder.layers.1.mlp.fc1.bias": None},
            r"lacks 1 weights of the model, for example 'model\.vision_tower\..*layers\.1\.mlp\.fc1\.bias'",
        ),
        ({}, {"lm_head.weight": torch.zeros(3, 64)}, r"'lm_head\.weight' of shape \(3, 64\), .* asks for \(384, 64\)"),
        ({"vocab_size": 500}, {}, r"'lm_head\.weight' of shape \(384, 64\), .* asks for \(500, 64\), and 1 more"),
        ({"mm_hidden_size": 32}, {}, r"mm_projector\.0\.weight' of shape \(64, 64\), config\.json asks for \(64, 32\)"),
    ],
)
def test_missing_and_misshapen_weights_are_refused(tmp_path, capfd, state, config, change, message):
    write_config(tmp_path, **config)
    tensors = {name: tensor for name, tensor in {**state, **change}.items() if tensor is not None}
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=message):
        load(tmp_path)
    assert "REPORT" not in capfd.readouterr().err


def test_tensors_that_are_not_read_are_one_line_in_the_log(tmp_path, caplog, capfd, state):
    write_config(tmp_path)
    tensors = {**state, "model.image_newline": torch.zeros(64), "model.zebra": torch.zeros(1)}
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    load(tmp_path)
    assert "holds 2 tensors that the model has no place for, for example 'model.image_newline'" in caplog.text
    assert "REPORT" not in caplog.text + capfd.readouterr().err


def test_missing_weights_of_transformers_format_are_refused(tmp_path):
    transformers_model().save_pretrained(tmp_path)
    write_tokenizer(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors[next(name for name in tensors if name.endswith("linear_2.bias"))]
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks the projector, model\.mm_projector\.\* .*2\.bias"):
        load(tmp_path)


@pytest.fixture
def beside(tmp_path, state) -> Path:
    """A checkpoint whose tower lies in the folder `clip` inside it."""
    write_config(tmp_path, mm_vision_tower="clip")
    tensors = {name: tensor for name, tensor in state.items() if "vision_tower" not in name}
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    write_tower(tmp_path / "clip", transformers_model())
    return tmp_path


def lose_a_weight(clip: Path) -> None:
    tensors = load_file(clip / "model.safetensors")
    del tensors[next(name for name in tensors if name.endswith("layers.1.mlp.fc1.bias"))]
    save_file(tensors, clip / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lose_a_weight,
            r"clip \(mm_vision_tower\) lacks 1 weights of the tower, for example .*layers\.1\.mlp\.fc1\.bias",
        ),
        (lambda clip: cut(clip / "model.safetensors", 0.5), r"clip/model\.safetensors is damaged or cut short"),
        (lambda clip: (clip / "model.safetensors").unlink(), r"clip holds no weights"),
        (lambda clip: cut(clip / "config.json", 0.5), r"\(mm_vision_tower\): .*clip/config\.json is not valid JSON"),
        (lambda clip: cut(clip / "preprocessor_config.json", 0.5), r"clip/preprocessor_config\.json is not valid JSON"),
        (shutil.rmtree, r"the vision tower 'clip' \(mm_vision_tower\) is neither a folder with a config\.json nor"),
    ],
)
def test_a_tower_beside_the_checkpoint_is_whole(beside, monkeypatch, damage, message):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    damage(beside / "clip")
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        load(beside)


@pytest.mark.parametrize("offline", ["HF_HUB_OFFLINE", "local_files_only"])
def test_a_hub_id_that_cannot_be_downloaded_is_named(tmp_path, monkeypatch, offline):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline == "HF_HUB_OFFLINE")
    options = {"cache_dir": str(tmp_path), "local_files_only": offline == "local_files_only"}
    with pytest.raises(FileNotFoundError, match="'some/model' is neither a folder nor a model id that the local cache"):
        load_pretrained_model("some/model", device="cpu", **options)
    with pytest.raises(FileNotFoundError, match=r"the local cache holds, .*; wanted is its revision 'v9'"):
        load_pretrained_model("some/model", device="cpu", revision="v9", **options)
    with pytest.raises(FileNotFoundError, match=rf"and the hub was not asked \({offline}"):
        load_pretrained_model("some/model", device="cpu", **options)


@pytest.mark.parametrize("path", ["no/such/model", "/nope", "./nope", "~nobody/model"])
def test_a_path_without_a_folder_is_not_blamed_on_the_hub(path, monkeypatch):
    monkeypatch.setattr(folders, "snapshot_download", lambda *_, **__: pytest.fail("the hub was asked"))
    with pytest.raises(FileNotFoundError, match=f"there is no checkpoint folder '{path}'"):
        load_pretrained_model(path, device="cpu")


def test_what_is_neither_a_path_nor_an_id_is_said_as_such():
    with pytest.raises(FileNotFoundError, match="'no model' is neither a folder nor of the form of a model id"):
        load_pretrained_model("no model", device="cpu")
    with pytest.raises(FileNotFoundError, match="test_builder_files.py' is a file; a checkpoint is a folder"):
        load_pretrained_model(__file__, device="cpu")


@pytest.mark.parametrize(
    ("refusal", "message"),
    [
        (errors.RepositoryNotFoundError, "'some/model' is neither a folder nor a model id that the hub knows"),
        (errors.RevisionNotFoundError, "'some/model' has no revision 'v9' on the hub"),
        (errors.GatedRepoError, "'some/model' is gated: accept its terms on the hub"),
    ],
)
def test_what_the_hub_refuses_is_said_in_one_line(monkeypatch, refusal, message):
    def refuse(*args, **options):
        raise refusal("404", response=httpx.Response(404, request=httpx.Request("GET", "https://hub.test")))

    monkeypatch.setattr(folders, "snapshot_download", refuse)
    with pytest.raises(OSError, match=message):
        load_pretrained_model("some/model", device="cpu", revision="v9")


def test_a_download_that_was_stopped_is_incomplete(tmp_path, monkeypatch, folder):
    """The cache knows the id, but holds its small files only."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    (folder / "model.safetensors").unlink()
    repository = tmp_path / "models--some--model"
    shutil.copytree(folder, repository / "snapshots" / "1a2b")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("1a2b")
    with pytest.raises(FileNotFoundError, match=r"snapshots/1a2b holds no weights: expected model\.safetensors"):
        load_pretrained_model("some/model", device="cpu", cache_dir=str(tmp_path))
