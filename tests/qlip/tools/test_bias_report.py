"""`qlip bias`: its output and its errors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, CLIPImageProcessorPil

from qlip import CoordinateMLP, QLIPConfig, QLIPImageProcessor
from qlip.cli import main
from qlip.tools.bias import measure
from qlip.tools.bias_config import BiasConfig
from qlip.tools.bias_report import spread
from tests.qlip.tools.test_bias import NATIVE, picture, tower, vision_model


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A tower's folder, a prior, and three pictures with one file that is none."""
    root = tmp_path_factory.mktemp("bias")
    vision_model().save_pretrained(root / "tower")
    CLIPImageProcessorPil(size={"shortest_edge": NATIVE}, crop_size=NATIVE).save_pretrained(root / "tower")
    CoordinateMLP(16, hidden=8).save(root / "prior.safetensors")
    (root / "images").mkdir()
    for seed in range(3):
        picture(60, 90, seed).save(root / "images" / f"{seed}.png")
    (root / "images" / "broken.png").write_text("no picture")
    return root


def run(root, *flags: str) -> int:
    return main(["bias", "--tower", str(root / "tower"), "--images", str(root / "images"), *flags])


def test_the_command_writes_means_settings_and_a_figure(workplace, tmp_path, capsys, caplog):
    flags = ["--sizes", "42", "56", "--alpha", "0.5", "--mlp", str(workplace / "prior.safetensors"), "--device", "cpu"]
    out = ["--out", str(tmp_path / "new" / "bias.json"), "--plot", str(tmp_path / "bias.svg")]
    assert run(workplace, *flags, *out) == 0
    assert "broken.png: not a readable image" in caplog.text
    captured = capsys.readouterr()
    assert captured.out.split() == ["means", out[1], "figure", out[3]]
    results = json.loads((tmp_path / "new" / "bias.json").read_text())
    expected = {
        "native_size": NATIVE, "patch_size": 14, "pictures": 3, "skipped": 1, "sizes": [42, 56],
        "shapes": ["native", "cropped"], "modes": ["bilinear", "bicubic", "mlp", "mlp-pure"], "dtype": "float32",
    }  # fmt: skip
    assert expected.items() <= results["settings"].items()
    stated = results["settings"]["quadtree"]
    assert stated["alpha"] == 0.5 and stated["geometry"] == "grid" and "interpolation" not in stated
    assert results["versions"]["torch"] == torch.__version__

    model = tower()
    model.set_prior(CoordinateMLP.load(workplace / "prior.safetensors"))
    config = BiasConfig((42, 56), modes=("bilinear", "bicubic", "mlp", "mlp-pure"), quadtree=QLIPConfig(**stated))
    wanted = measure(model, QLIPImageProcessor(), [picture(60, 90, seed) for seed in range(3)], config)
    assert len(wanted) == len(results["rows"]) == 2 * 2 * 2 * 5
    for ours, row in zip(wanted, results["rows"], strict=True):
        assert row.keys() == vars(ours).keys()
        for name, value in vars(ours).items():
            assert row[name] == (pytest.approx(value, abs=1e-5) if isinstance(value, float) else value)
    figure = (tmp_path / "bias.svg").read_text()
    for text in ("uniform", "quadtree, mlp-pure", "own aspect ratio", "central square", "shorter side, pixels"):
        assert f">{text}" in figure


def test_without_the_quadtrees_flags_the_uniform_grid_alone_is_measured_and_none_is_no_budget(workplace, tmp_path):
    out = tmp_path / "bias.json"
    assert run(workplace, "--sizes", "42", "--limit", "1", "--modes", "bicubic", "--out", str(out)) == 0
    results = json.loads(out.read_text())
    assert results["settings"]["quadtree"] is None and results["settings"]["pictures"] == 1
    assert {(row["tiling"], row["mode"]) for row in results["rows"]} == {("uniform", None), ("uniform", "bicubic")}
    assert run(workplace, "--sizes", "42", "--limit", "1", "--max-tokens", "none", "--out", str(out)) == 0
    quadtree = json.loads(out.read_text())["settings"]["quadtree"]
    assert quadtree["max_tokens"] is None and quadtree["alpha"] == QLIPConfig().alpha


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--images", "absent"], "there is no folder absent"),
        (["--images", "{root}/tower"], "there are no images in"),
        (["--tower", "{root}/absent"], "no tower can be loaded from"),
        (["--tower", "{root}/bert"], "is of type 'bert'; allowed are clip"),
        (["--mlp", "{root}/absent.pt"], "no MLP prior at"),
        (["--modes", "cubic"], "modes is 'cubic'"),
        (["--plot", "bias.gif"], "a figure is written as .svg or .png, got 'bias.gif'"),
        (["--device", "abacus"], "--device is 'abacus', but this machine has cpu"),
        (["--device", "meta"], "--device is 'meta', but this machine has cpu"),
        (["--limit", "-1"], "limit is -1"),
        (["--out", "{root}/tower"], "tower is a folder; name a file"),
        (["--out", "{root}/images/1.png"], "1.png is one of the files that are read; name another file to write"),
        (["--plot", "{root}/images/1.png"], "--plot {root}/images/1.png is one of the files that are read"),
        (
            ["--mlp", "{root}/prior.safetensors", "--out", "{root}/prior.safetensors"],
            "is one of the files that are read",
        ),
    ],
)
def test_the_command_refuses_in_one_line(workplace, tmp_path, capsys, flags, message):
    BertConfig().save_pretrained(workplace / "bert")
    CLIPImageProcessorPil().save_pretrained(workplace / "bert")
    flags = [flag.format(root=workplace) for flag in flags]
    assert run(workplace, "--out", str(tmp_path / "bias.json"), *flags) == 2
    message = message.format(root=workplace)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("qlip: ")]
    assert len(lines) == 1 and message in lines[0]
    assert not (tmp_path / "bias.json").exists()


def test_a_folder_whose_pictures_all_fail_is_refused(workplace, tmp_path, capsys):
    (tmp_path / "broken.png").write_text("no picture")
    assert run(workplace, "--images", str(tmp_path), "--out", str(tmp_path / "bias.json")) == 2
    assert "there are no images to measure" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("limit", "stems"), [(None, "abcdef"), (1, "a"), (2, "ad"), (4, "abde"), (6, "abcdef"), (9, "abcdef")]
)
def test_a_limit_spreads_over_the_paths(limit, stems):
    assert [path.stem for path in spread([Path(f"{stem}.png") for stem in "abcdef"], limit)] == list(stems)


def test_a_limit_is_positive():
    with pytest.raises(ValueError, match="limit is 0"):
        spread([Path("a.png")], 0)
