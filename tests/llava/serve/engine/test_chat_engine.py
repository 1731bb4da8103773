"""The engine streams exactly the answer, ends where it should, and refuses what does not fit before computing."""

from __future__ import annotations

from itertools import chain, repeat
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from llava.conversation import conv_templates
from llava.serve.engine import ChatEngine
from llava.serve.engine.errors import GenerationError
from llava.serve.engine.params import Sampling
from tests.llava.serve.engine.engines import NewEngine
from tests.llava.serve.fakes import EOS, BytesTokenizer, QuadtreeTower, ScriptedModel, SquareProcessor, Tower
from tests.llava.serve.openai.serving import QUESTION

PICTURE = Image.new("RGB", (8, 6))


def engine(model: ScriptedModel, context_len: int = 4096, conv_mode: str | None = None) -> ChatEngine:
    return ChatEngine(BytesTokenizer(), model, SquareProcessor(), context_len, conv_mode)


def ask(model: ScriptedModel, sampling: Sampling, prompt: str = "<image>\nHi", images: int = 1) -> list[str]:
    return list(engine(model).reply(prompt, [PICTURE] * images, sampling))


def test_an_answer_streams_in_pieces_that_join_to_the_whole() -> None:
    pieces = ask(ScriptedModel(["a red circle and a blue cross"]), Sampling())
    assert "".join(pieces) == "a red circle and a blue cross"
    assert len(pieces) > 3


def test_the_model_gets_pictures_in_full_precision() -> None:
    model = ScriptedModel(["yes"])
    ask(model, Sampling(), prompt="<image><image>Hi", images=2)
    (call,) = model.calls
    assert [image.shape for image in call["images"]] == [(3, 4, 4)] * 2
    assert {image.dtype for image in call["images"]} == {torch.float32}  # rounded after the quadtree has seen them
    assert call["attention_mask"].tolist() == [[1] * call["input_ids"].shape[1]]
    assert call["pad_token_id"] == EOS


def test_pictures_are_prepared_upright_as_a_chat_sees_them(new_engine: NewEngine) -> None:
    engine, upright, exif = new_engine(), Image.linear_gradient("L").resize((300, 120)).convert("RGB"), Image.Exif()
    turned = upright.transpose(Image.Transpose.ROTATE_90)
    exif[0x0112] = 6
    turned.info["exif"] = exif.tobytes()
    assert torch.equal(engine.prepare_images([turned]), engine.prepare_images([upright]))


def test_text_alone_needs_no_picture() -> None:
    model = ScriptedModel(["yes"])
    assert "".join(ask(model, Sampling(), prompt="Hi", images=0)) == "yes"
    assert model.calls[0]["images"] is None


@pytest.mark.parametrize(
    ("sampling", "temperatures"), [(Sampling(temperature=0, top_p=0.5), []), (Sampling(temperature=0.7), [0.7])]
)
def test_sampling_reaches_the_model_and_temperature_0_is_greedy(sampling: Sampling, temperatures: list[float]) -> None:
    model = ScriptedModel(["yes"])
    assert "".join(ask(model, sampling)) == "yes"
    assert model.temperatures == [temperatures]


@pytest.mark.parametrize(
    ("sampling", "passed"),
    [
        (Sampling(0, num_beams=3, max_new_tokens=9), {"num_beams": 3, "max_new_tokens": 9, "do_sample": False}),
        (Sampling(0.7, 0.5, num_beams=2), {"num_beams": 2, "do_sample": True, "temperature": 0.7, "top_p": 0.5}),
    ],
)
def test_beams_reach_the_model(sampling: Sampling, passed: dict[str, object]) -> None:
    model = ScriptedModel(["yes"])
    assert "".join(ask(model, sampling)) == "yes"
    assert {name: model.calls[0][name] for name in passed} == passed


@pytest.mark.parametrize("num_beams", [1, 2])
def test_a_failure_in_the_model_reaches_the_caller(num_beams: int) -> None:
    with pytest.raises(GenerationError, match=r"the model failed \(RuntimeError\)") as failed:
        ask(ScriptedModel([RuntimeError("at 0x7f00")]), Sampling(num_beams=num_beams))
    assert str(failed.value.__cause__) == "at 0x7f00"


@pytest.mark.parametrize("num_beams", [1, 2])
def test_a_stop_string_ends_the_answer_and_is_not_part_of_it(num_beams: int) -> None:
    answer = ask(ScriptedModel(["yes ### no"]), Sampling(stop=("###",), num_beams=num_beams))
    assert "".join(answer) == "yes "


def test_closing_the_answer_stops_the_model() -> None:
    class EndlessModel(ScriptedModel):
        stopped = False

        def generate(self, input_ids: Tensor, *, streamer: Any, stopping_criteria: Any, **options: Any) -> Tensor:
            streamer.put(input_ids)
            for token in chain.from_iterable(repeat(BytesTokenizer.bytes("on and "))):
                streamer.put(torch.tensor([token]))
                if any(criterion(input_ids, None).all() for criterion in stopping_criteria):
                    break
            self.stopped = True
            return input_ids

    model = EndlessModel([])
    talker = engine(model)
    stream = talker.reply("<image>", [PICTURE], Sampling(max_new_tokens=4000))
    assert next(stream) + next(stream) == "on"
    stream.close()
    talker.close()  # waits for the model's thread
    assert model.stopped


@pytest.mark.parametrize(
    ("tower", "visual"), [(Tower(), 16), (QuadtreeTower(), 5), (QuadtreeTower(thumbnail=True), 21)]
)
def test_what_exceeds_the_context_is_refused_before_anything_is_computed(tower: Tower, visual: int) -> None:
    model = ScriptedModel([], tower)
    prompt = "<image>1234567"  # BOS and seven bytes
    fitting = 8 + visual + 10
    with pytest.raises(
        ValueError, match=f"8 text tokens, {visual} positions of images .* up to 10 .* of {fitting - 1}"
    ):
        engine(model, fitting - 1).reply(prompt, [PICTURE], Sampling(max_new_tokens=10))
    assert model.calls == []
    model.script.append("yes")
    assert "".join(engine(model, fitting).reply(prompt, [PICTURE], Sampling(max_new_tokens=10))) == "yes"


# Prompt formats


@pytest.mark.parametrize(
    ("config", "flag", "expected"), [(None, None, "vicuna_v1"), ("mpt", None, "mpt"), ("mpt", "llava_v0", "llava_v0")]
)
def test_the_format_is_the_flags_else_the_configs_else_vicunas(
    config: str | None, flag: str | None, expected: str
) -> None:
    chosen = engine(ScriptedModel([], conv_mode=config), conv_mode=flag)
    assert chosen.new_conversation() == conv_templates[expected]


def test_an_unknown_format_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="unknown conv_mode 'vicuna'; known: default, v0, v1, vicuna_v1"):
        engine(ScriptedModel([], conv_mode="vicuna"))


@pytest.mark.parametrize(
    ("text", "images", "marked", "expected"),
    [
        ("Hi", 1, False, "<image>\nHi"),
        ("Hi", 2, False, "<image>\n<image>\nHi"),
        ("Hi", 1, True, "<im_start><image><im_end>\nHi"),
        ("Compare <image-placeholder> to it", 1, False, "Compare <image> to it"),
        ("Compare <image-placeholder> to it", 1, True, "Compare <im_start><image><im_end> to it"),
        ("<image>\nHi", 1, False, "<image>\nHi"),
        ("<image>\nHi", 1, True, "<im_start><image><im_end>\nHi"),
        ("<im_start><image><im_end>\nHi", 1, True, "<im_start><image><im_end>\nHi"),
        ("Is <image> like <image-placeholder>?", 2, False, "Is <image> like <image>?"),
        ("Is <image> alone?", 2, False, "Is <image> alone?"),
    ],
)
def test_pictures_come_before_the_question_or_where_it_says(
    text: str, images: int, marked: bool, expected: str
) -> None:
    model = ScriptedModel([], mm_use_im_start_end=marked)
    assert engine(model).first_question(text, images) == expected


@pytest.mark.parametrize(("name", "end"), [("vicuna_v1", "</s>"), ("llava_v0", "###"), ("mpt", "<|im_end|>")])
def test_a_reply_ends_at_its_formats_separator(name: str, end: str) -> None:
    model = ScriptedModel([f"Hello{end}and more"])
    conversation = conv_templates[name].copy()
    conversation.append_message(conversation.roles[0], "<image>\nHi")
    conversation.append_message(conversation.roles[1], None)
    assert "".join(engine(model).reply(conversation, [PICTURE], Sampling())) == "Hello"
    assert model.prompts == [conversation.get_prompt()]


@pytest.mark.parametrize("images", [PICTURE, "x.png", ["x.png"], [None], None])
def test_what_is_no_list_of_pictures_is_named(images: Any) -> None:
    held = images[0] if isinstance(images, list) else images
    with pytest.raises(TypeError, match=rf"images \w+ a {type(held).__name__}; it must be a list of Pillow images"):
        engine(ScriptedModel(["yes"])).ask("Hi", images)


def test_a_question_that_is_no_text_and_settings_of_another_type_are_named() -> None:
    chat = engine(ScriptedModel(["yes"]))
    with pytest.raises(TypeError, match="the question is 5; it must be text"):
        chat.ask(5, [PICTURE])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"sampling is a dict; it must be Sampling\(temperature"):
        chat.ask("Hi", [PICTURE], {"temperature": 0})  # type: ignore[arg-type]


def test_an_empty_question_is_refused(new_engine: NewEngine) -> None:
    engine = new_engine()
    for ask_it in (engine.ask, engine.explain):
        with pytest.raises(ValueError, match="the question is empty"):
            ask_it(" \n", [PICTURE])


def test_half_a_character_is_refused_before_the_tokenizer_gets_it(new_engine: NewEngine) -> None:
    engine, words = new_engine(), r"contains a lone surrogate, '\\ud800'"
    with pytest.raises(ValueError, match=f"the question {words}"):
        engine.ask("a \ud800 b", [])
    with pytest.raises(ValueError, match=f"the prompt {words}"):
        engine.submit("a \ud800 b", [], Sampling())
    with pytest.raises(ValueError, match=words):
        engine.explain(QUESTION, [PICTURE], "a \ud800 b")
    assert engine.waiting == 0
