"""One question to a model, as LLaVA's documentation asks it."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from llava.conversation import conv_templates
from llava.eval import run_llava
from llava.model import builder
from tests.llava.checkpoints import make_llava_checkpoint
from tests.llava.serve.fakes import BytesTokenizer, ScriptedModel, SquareProcessor


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("pictures") / "picture.png"
    Image.effect_noise((120, 80), 60).convert("RGB").save(path)
    return str(path)


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> ScriptedModel:
    model = ScriptedModel(["a red circle"])
    monkeypatch.setattr(
        builder, "load_pretrained_model", lambda *args, **options: (BytesTokenizer(), model, SquareProcessor(), 4096)
    )
    return model


def documented(picture: str, **changes: Any) -> Any:
    """The arguments object of LLaVA's documentation: a bare class with just these attributes."""
    attributes = {
        "model_path": "liuhaotian/llava-v1.5-7b",
        "model_base": None,
        "model_name": "llava-v1.5-7b",
        "query": "What is this?",
        "conv_mode": None,
        "image_file": picture,
        "sep": ",",
        "temperature": 0,
        "top_p": None,
        "num_beams": 1,
        "max_new_tokens": 512,
    }
    return type("Args", (), {**attributes, **changes})()


def prompt(question: str, name: str = "vicuna_v1") -> str:
    conversation = conv_templates[name].copy()
    conversation.append_message(conversation.roles[0], question)
    conversation.append_message(conversation.roles[1], None)
    return conversation.get_prompt()


def test_the_documented_arguments_print_the_answer(
    model: ScriptedModel, picture: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run_llava.eval_model(documented(picture))
    assert capsys.readouterr().out == "a red circle\n"
    assert model.prompts == [prompt("<image>\nWhat is this?")]
    assert model.calls[0]["do_sample"] is False
    assert model.calls[0]["max_new_tokens"] == 512


@pytest.mark.parametrize(
    ("query", "marked", "question"),
    [
        ("Is <image-placeholder> a cat?", False, "Is <image> a cat?"),
        ("Is <image-placeholder> a cat?", True, "Is <im_start><image><im_end> a cat?"),
        ("Is it?", True, "<im_start><image><im_end>\nIs it?"),
        ("-v?", False, "<image>\n-v?"),
    ],
)
def test_the_image_is_placed_where_the_query_says(
    model: ScriptedModel, picture: str, query: str, marked: bool, question: str
) -> None:
    model.config.mm_use_im_start_end = marked
    run_llava.eval_model(documented(picture, query=query))
    assert model.prompts == [prompt(question)]


def test_several_pictures_are_split_at_the_separator(model: ScriptedModel, picture: str) -> None:
    run_llava.eval_model(documented(f"{picture};{picture}", sep=";"))
    assert len(model.calls[0]["images"]) == 2
    assert model.prompts == [prompt("<image>\n<image>\nWhat is this?")]


def test_settings_reach_the_model(model: ScriptedModel, picture: str) -> None:
    changes = {"conv_mode": "llava_v0", "temperature": 0.5, "top_p": 0.9, "num_beams": 2, "max_new_tokens": 3}
    run_llava.eval_model(documented(picture, **changes))
    assert model.prompts == [prompt("<image>\nWhat is this?", "llava_v0")]
    passed = {"do_sample": True, "temperature": 0.5, "top_p": 0.9, "num_beams": 2, "max_new_tokens": 3}
    assert passed.items() <= model.calls[0].items()


def test_only_a_typed_length_must_fit_the_context(model: ScriptedModel, picture: str) -> None:
    flags = ["--model-path", "m", "--image-file", picture, "--query", "word " * 770]
    assert run_llava.main(flags) == 0
    assert model.calls[0]["max_new_tokens"] < 512
    assert run_llava.main([*flags, "--max_new_tokens", "512"]) == 2
    with pytest.raises(ValueError, match="exceed the model's context"):
        run_llava.eval_model(documented(picture, query="word " * 770))


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--model-path", "m", "--image-file", "a.png"], "--query is required"),
        (["--model-path", "m", "--image-file", "a.png", "--query", " "], "the question is empty (--query)"),
        (["--image-file", "", "--query", "Hi"], "argument --image-file: the name is empty"),
        (["--model-path", "m", "--query", "Hi"], "--image-file is required with --model-path"),
        (
            ["--image-file", "a.png", "--query", "Hi", "--sep", ""],
            "--sep is empty; it must be at least one character, such as ','",
        ),
    ],
)
def test_missing_flags_are_reported_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], flags: list[str], words: str
) -> None:
    monkeypatch.setattr(sys, "argv", ["run_llava", *flags])
    try:
        code = run_llava.main()
    except SystemExit as exit_:
        code = exit_.code
    assert (code, capsys.readouterr().err) == (2, f"run_llava: error: {words}\n")


@pytest.mark.parametrize("arguments", [{}, {"query": None}])
def test_an_arguments_object_without_a_query_is_told_so(arguments: dict[str, None], picture: str) -> None:
    with pytest.raises(ValueError, match=r"the question is empty \(--query\)"):
        run_llava.eval_model(SimpleNamespace(model_path=None, image_file=picture, **arguments))


def test_the_command_prints_one_answer(
    tmp_path_factory: pytest.TempPathFactory, picture: str, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = make_llava_checkpoint(tmp_path_factory.mktemp("llava"))
    flags = ["--model-path", str(checkpoint), "--image-file", picture, "--query", "What?", "--device", "cpu"]
    assert run_llava.main([*flags, "--temperature", "0", "--max_new_tokens", "3"]) == 0
    assert capsys.readouterr().out.endswith("\n")


def test_llavas_names_for_opening_images_are_found_here(picture: str) -> None:
    from llava.eval.run_llava import image_parser, load_image, load_images

    args = SimpleNamespace(image_file=f"{picture}|{picture}", sep="|")
    assert [image.mode for image in load_images(image_parser(args))] == ["RGB", "RGB"]
    assert load_image(picture).size == (120, 80)


def test_names_of_llavas_quick_start_are_found_here() -> None:
    for module, names in run_llava.ELSEWHERE.items():
        for name in names:
            assert getattr(run_llava, name) is getattr(sys.modules[module], name)
