"""Language model and tower of the recipe `llava`: each trains its own part, alone, and continues where it stopped."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from llava.model.loading.tokenizer import load_tokenizer
from playground.corpus import PIECES, Corpus, sentences
from playground.model import LLAVA, DemoModel, llava_state_dict
from playground.objects import COLOURS, SHAPES
from playground.picture_cache import PictureCache
from playground.presets import TRAINING
from playground.pretraining import (
    OBJECT_WEIGHT,
    LanguageStage,
    Sources,
    VisionStage,
    cell_loss,
    document_mask,
    split_cells,
)
from playground.scenes import SIGN_LABEL
from playground.schedules import PRETRAINING_SCHEDULES, Schedule, TrainingConfig
from playground.trainer import Trainer
from playground.vocabulary import train_vocabulary

STAGES = {"language": LanguageStage, "vision": VisionStage}


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sources")
    train_vocabulary(folder, sentences(100), PIECES)
    tokenizer = load_tokenizer(folder)
    return Sources(
        corpus=Corpus(tokenizer, window=128),
        pictures=PictureCache(folder / "pictures", TRAINING, seed=6, count=6),
        tokenizer=tokenizer,
        seed=0,
        device=torch.device("cpu"),
    )


def build(name: str, sources: Sources, steps: int = 2) -> torch.nn.Module:
    torch.manual_seed(0)
    schedule = Schedule(steps, rate=1e-3, batch=1 if name == "language" else 4, warmup=1)
    return STAGES[name](DemoModel(len(sources.tokenizer), LLAVA), sources, schedule)


def test_the_model_has_two_to_four_million_weights_and_fits_into_8_mb():
    model = DemoModel(PIECES, LLAVA)
    count = sum(weight.numel() for weight in model.parameters())
    assert 2e6 < count < 4e6
    assert sum(2 * weight.numel() for weight in llava_state_dict(model).values()) < 8e6


@pytest.mark.parametrize("name", PRETRAINING_SCHEDULES)
def test_a_stopped_run_ends_with_the_same_weights(name, sources, tmp_path):
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    straight.mkdir(), stopped.mkdir()
    schedule = Schedule(steps=2, rate=1e-3, warmup=1)
    whole = build(name, sources)
    Trainer(name, whole, schedule, TrainingConfig(out=straight, log_every=1)).run()

    first = Trainer(name, build(name, sources), schedule, TrainingConfig(out=stopped, log_every=1))
    first.advance()
    first.save()
    second = build(name, sources)
    Trainer(name, second, schedule, TrainingConfig(out=stopped, log_every=1)).run()
    for key, weight in whole.state_dict().items():
        assert torch.equal(weight, second.state_dict()[key]), key
    log = json.loads((straight / "logs" / name / "trainer_state.json").read_text())["log_history"]
    assert [entry["step"] for entry in log] == [1, 2] and all(math.isfinite(entry["loss"]) for entry in log)


@pytest.mark.parametrize("name", PRETRAINING_SCHEDULES)
def test_a_stage_trains_all_its_parameters(name, sources):
    stage = build(name, sources)
    for step in range(3):  # a batch may be without a sign
        stage.loss(step, 0.0)[0].backward()
    still = [name for name, weight in stage.named_parameters() if weight.grad is None or not weight.grad.any()]
    # A key's bias shifts all logits of a query alike: its gradient is zero but for rounding.
    assert [name for name in still if not name.endswith("k_proj.bias")] == []


def test_the_language_model_sees_no_image_and_the_tower_no_language_model(sources):
    names = {name: {part.split(".")[0] for part, _ in build(name, sources).named_parameters()} for name in STAGES}
    assert names["language"] == {"decoder"}
    assert "decoder" not in names["vision"] and "projector" not in names["vision"]


def test_packed_documents_get_the_losses_that_they_get_alone(sources):
    stage = build("language", sources)
    batch = sources.corpus.batch(1, np.random.default_rng(4))
    ids, _, documents, positions = (torch.from_numpy(array) for array in batch)
    with torch.no_grad():
        packed = stage.decoder(ids, attention_mask=document_mask(documents), position_ids=positions).logits[0]
        alone = [stage.decoder(ids[:, documents[0] == n]).logits[0] for n in range(int(documents.max()) + 1)]
    torch.testing.assert_close(packed, torch.cat(alone), atol=1e-4, rtol=1e-4)


def test_cells_of_signs_are_a_shape_without_colour():
    colour, shape = split_cells(torch.tensor([[0, 1, len(COLOURS) * len(SHAPES), SIGN_LABEL]]))
    assert colour.tolist() == [[0, 1, len(COLOURS), 0]]
    assert shape.tolist() == [[0, 1, len(SHAPES), len(SHAPES) + 1]]


def test_cells_that_show_something_weigh_more_than_the_ground():
    """Two of three cells are guessed at even odds of two, the ground for certain."""
    logits = torch.tensor([[[0.0, 0.0], [0.0, 0.0], [99.0, 0.0]]])
    loss = cell_loss(logits, torch.tensor([[1, 0, 0]]), torch.tensor([[True, True, False]]))
    assert loss.item() == pytest.approx(2 * OBJECT_WEIGHT * math.log(2) / (2 * OBJECT_WEIGHT + 1))


def test_the_tower_needs_pictures(sources):
    without = Sources(**(vars(sources) | {"pictures": None}))
    with pytest.raises(ValueError, match="'vision' needs pictures"):
        build("vision", without).loss(0, 0.0)
