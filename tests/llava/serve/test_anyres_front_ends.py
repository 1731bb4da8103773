"""A LLaVA-1.6 checkpoint answers through every front end as transformers' LlavaNext does, its tokens counted."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from llava.eval.run.inputs.preparation import pack, unpack
from llava.eval.run.inputs.questions import Question
from llava.eval.run.likelihood import Choice, choose
from llava.eval.run.runner import Runner
from llava.mm_utils import process_images, tokenizer_image_token
from llava.model.builder import load_pretrained_model
from llava.model.vision.preparer import Preparer
from llava.serve import cli
from llava.serve.decoding import pool
from llava.serve.decoding.pool import DecoderPool
from llava.serve.engine import ChatEngine
from llava.serve.engine.errors import PromptTooLongError
from llava.serve.engine.params import SERVER_DEFAULTS, QLIPOptions, Sampling
from llava.serve.web import views
from llava.serve.web.backend import EngineBackend
from llava.serve.workers.worker_app import ModelWorker, create_app
from tests.llava.next_checkpoints import make_next_checkpoint, next_model, oracle_inputs, picture
from tests.llava.serve import upstream
from tests.llava.serve.openai.serving import CHAT, DEADLINE, api, body, data_url, served, user
from tests.llava.serve.workers.worker_requests import NAME

TEXT = "what is in the picture?"
IMAGE = picture(300, 120)
GREEDY = Sampling(temperature=0.0, max_new_tokens=6)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return make_next_checkpoint(tmp_path_factory.mktemp("next"))


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("pictures") / "wide.png"
    IMAGE.save(path)
    return path


@pytest.fixture(scope="module")
def loaded(checkpoint):
    return load_pretrained_model(str(checkpoint), device="cpu")


@pytest.fixture
def engine(loaded) -> Iterator[ChatEngine]:
    engine = ChatEngine(*loaded)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def expected(loaded) -> tuple[str, int]:
    """The oracle's text, and how many of its tokens are visual."""
    tokenizer, model, processor, _ = loaded
    engine = ChatEngine(*loaded)
    ids = tokenizer_image_token(engine.question(TEXT, 1).get_prompt(), tokenizer)
    engine.close()
    pixels = list(process_images([IMAGE], processor, model.config))
    oracle = next_model()
    inputs = oracle_inputs(oracle, [ids], pixels, [IMAGE.size])
    with torch.no_grad():
        said = oracle.generate(**inputs, do_sample=False, max_new_tokens=GREEDY.max_new_tokens)[0]
    length = inputs["input_ids"].shape[1]
    return tokenizer.decode(said[length:], skip_special_tokens=True).strip(), length - len(ids) + 1


def test_the_engine_says_what_llava_next_says_and_counts_its_tokens(engine, expected):
    answer = engine.submit(engine.question(TEXT, 1), [IMAGE], GREEDY)
    assert ("".join(answer).strip(), answer.usage.visual_tokens) == expected
    assert answer.usage.uniform_tokens == expected[1]
    engine.context_len = answer.usage.text_tokens + expected[1] + GREEDY.max_new_tokens
    assert engine.ask(TEXT, [IMAGE], GREEDY) == expected[0]
    engine.context_len -= 1
    with pytest.raises(PromptTooLongError, match=f" {expected[1]} positions of images"):
        engine.ask(TEXT, [IMAGE], GREEDY)


def test_the_terminal_chat(checkpoint, file, expected, capsys):
    flags = ["--model-path", str(checkpoint), "--image-file", str(file), "--device", "cpu", "--temperature", "0"]
    assert cli.main([*flags, "--max-new-tokens", "6", "--prompt", TEXT]) == 0
    assert capsys.readouterr().out.strip() == expected[0]


@pytest.fixture
def decoders(monkeypatch) -> Iterator[None]:
    """Decoders of images without effective time limits, for a busy machine."""
    decoders = DecoderPool(1, cpu_seconds=DEADLINE, idle_seconds=DEADLINE, wall_seconds=DEADLINE)
    monkeypatch.setattr(pool, "shared_decoders", lambda: decoders)
    yield
    decoders.close()


@pytest.mark.usefixtures("decoders")
def test_the_openai_api(engine, file, expected):
    with api(engine) as (_, client):
        reply = client.post(CHAT, json=body(user(TEXT, data_url(file.read_bytes())), max_tokens=6)).json()
    assert reply["choices"][0]["message"]["content"].strip() == expected[0]
    assert reply["usage"]["prompt_tokens_details"]["image_tokens"] == expected[1]


@pytest.mark.usefixtures("decoders")
def test_a_worker(engine, file, expected):
    request = {
        "model": NAME,
        "prompt": engine.question(TEXT, 1).get_prompt(),
        "images": [base64.b64encode(file.read_bytes()).decode()],
        "temperature": 0,
        "max_new_tokens": 6,
        "stop": "</s>",
    }
    with served(create_app(ModelWorker(engine, [NAME]))) as url:
        assert list(upstream.chat(url, request))[-1].strip() == expected[0]


def test_the_batch_runner_and_the_likelihoods(engine, file, expected):
    """Prepared in another process: packed and unpacked."""
    preparer = Preparer.of(engine.vision.tower)
    ready = unpack(pack(preparer(file)))
    assert ready.tokens == expected[1]
    question = Question(0, TEXT, TEXT, file)
    ((answer,),) = Runner(engine, GREEDY, 0).run([question], iter([ready]))
    assert (answer.text, answer.error) == (expected[0], None)
    chosen = choose(engine, preparer, question, Choice(TEXT, {"A": "a circle", "B": "a square"}))
    assert chosen.text in ("A", "B") and chosen.error is None


@pytest.fixture(params=["image", "tiles"])
def quadtree(checkpoint, request) -> Iterator[ChatEngine]:
    """An engine that sees by quadtree in place of tiles."""
    settings = {"tiling": request.param, "max_tokens": 90}
    engine = ChatEngine(*load_pretrained_model(str(checkpoint), device="cpu", qlip=settings))
    yield engine
    engine.close()


def test_a_quadtree_in_place_of_tiles_answers_alike_everywhere(quadtree, checkpoint, file, expected, capsys, tmp_path):
    """In the engine, the batch runner, the terminal and the page; and as tiles, where a request wants CLIP's view."""
    answer = quadtree.submit(quadtree.question(TEXT, 1), [IMAGE], GREEDY)
    said = "".join(answer).strip()
    settings = quadtree.vision.tower.settings
    cells = quadtree.vision.prepare(IMAGE, settings)
    assert answer.usage.visual_tokens == cells.tokens
    preparer = Preparer.of(quadtree.vision.tower)
    question = Question(0, TEXT, TEXT, file)
    ((row,),) = Runner(quadtree, GREEDY, 0).run([question], iter([unpack(pack(preparer(file)))]))
    assert (row.text, row.error) == (said, None)
    drawing = tmp_path / "drawing.png"
    flags = ["--model-path", str(checkpoint), "--image-file", str(file), "--device", "cpu", "--temperature", "0"]
    flags += ["--tiling", settings.tiling, "--max-tokens", "90", "--show-quadtree", str(drawing)]
    assert cli.main([*flags, "--max-new-tokens", "6", "--prompt", TEXT]) == 0
    assert capsys.readouterr().out.strip().splitlines()[-1] == said and drawing.stat().st_size > 0
    backend = EngineBackend(quadtree)
    assert views.draw(cells, backend.pixels).getbbox() is not None
    share = f"{cells.tokens / cells.uniform_tokens:.0%} of the {cells.uniform_tokens:,} of the model&rsquo;s own tiles"
    assert share in views.token_meter(cells, IMAGE, backend.native_tokens)
    whole = quadtree.submit(quadtree.question(TEXT, 1), [IMAGE], GREEDY, QLIPOptions(enabled=False))
    assert ("".join(whole).strip(), whole.usage.visual_tokens) == expected


def test_the_page_draws_the_whole_picture_and_counts_the_tiles(engine, expected):
    backend = EngineBackend(engine)
    prepared = backend.prepare(IMAGE, SERVER_DEFAULTS)
    assert views.draw(prepared, backend.pixels).getbbox() is not None
    meter = views.token_meter(prepared, IMAGE, backend.native_tokens)
    assert f"<strong>{expected[1]}</strong> visual tokens" in meter and "and 3 tiles of it" in meter
    with pytest.raises(ValueError, match="this model has CLIP's uniform grid only"):
        backend.prepare(IMAGE, QLIPOptions(enabled=True))
