"""`QLIPConfig`: defaults, checks, and the round trip through JSON."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest
from transformers import PreTrainedConfig

from qlip import QLIPConfig

DEFAULTS = {
    "alpha": 0.8,
    "criterion": "objects",
    "max_tokens": 1152,
    "split_order": "side",
    "budget": "score",
    "score_share": 0.15,
    "question_share": 0.15,
    "geometry": "native",
    "layout": "aligned",
    "image_size": None,
    "interpolation": "bicubic",
    "mlp": None,
    "mlp_residual": True,
    "leaf_position": "native",
    "placement": "whole",
    "coarsest": "native",
    "structure_size": 7,
    "noise_floor": True,
    "thumbnail": False,
    "tiling": "image",
    "llm_positions": "raster",
    "size_bias": 0.0,
    "keep_split_cells": False,
    "llm_size_bias": -0.25,
    "llm_weight": "each",
    "seed": 0,
    "max_cells": 16384,
}


def test_the_defaults_are_the_documented_ones():
    assert QLIPConfig().to_dict() == DEFAULTS


def test_a_config_cannot_change():
    with pytest.raises(dataclasses.FrozenInstanceError):
        QLIPConfig().alpha = 0.5


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"alpha": 0.0, "max_tokens": None},
        {"alpha": math.inf, "layout": "centered", "criterion": "structure", "structure_size": 5},
        {"interpolation": "mlp", "mlp": "prior.safetensors", "mlp_residual": False, "leaf_position": "mean"},
        {"coarsest": "native", "thumbnail": True, "llm_positions": "sequential", "image_size": 560},
        {"geometry": "native", "leaf_position": "native", "placement": "padded", "noise_floor": True},
        {"size_bias": 1.0, "llm_size_bias": -0.5, "seed": 3, "max_cells": 4096, "tiling": "tiles"},
    ],
    ids=str,
)
def test_survives_the_trip_through_strict_json(values):
    config = QLIPConfig(**values)
    text = json.dumps(config.to_dict(), allow_nan=False)
    assert QLIPConfig.from_dict(json.loads(text)) == config


def test_what_a_dict_leaves_out_takes_its_default():
    assert QLIPConfig.from_dict({"alpha": 0.3}) == QLIPConfig(alpha=0.3)


def test_an_unset_number_of_cells_is_read_as_it_was_written_before_there_was_a_share():
    assert QLIPConfig.from_dict({"question_cells": None, "alpha": 0.5}) == QLIPConfig(alpha=0.5)
    with pytest.raises(ValueError, match=r"question_cells \(did you mean question_share\?\); allowed are "):
        QLIPConfig.from_dict({"question_cells": 2})


def test_an_unknown_key_is_named_with_the_allowed_ones():
    with pytest.raises(ValueError, match=r"(?s)epsilon.*alpha.*criterion.*max_tokens"):
        QLIPConfig.from_dict({"epsilon": 0.1})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"alpha": -0.1}, "-0.1"),
        ({"alpha": math.nan}, "nan"),
        ({"max_tokens": 0}, "max_tokens.*0"),
        ({"image_size": 0}, "image_size.*0"),
        ({"max_cells": 0}, "max_cells.*0"),
        ({"structure_size": 6}, "structure_size.*6.*odd"),
        ({"structure_size": 1}, "structure_size.*1"),
        ({"size_bias": math.inf}, "size_bias.*inf"),
        ({"llm_size_bias": math.nan}, "llm_size_bias.*nan"),
        ({"llm_size_bias": -100.0}, "llm_size_bias is -100.0; it must be a finite number of at least -4 and at most 4"),
        ({"size_bias": 4.5}, "size_bias is 4.5; it must be a finite number of at least -4 and at most 4"),
        ({"criterion": "entropy"}, "criterion.*entropy.*gradient.*structure.*variance.*diagonal.*random"),
        ({"budget": "answer"}, "budget.*answer.*score.*question"),
        ({"split_order": "size"}, "split_order is 'size'; allowed are 'side', 'score'"),
        ({"question_share": math.inf}, "question_share is inf; it must be a finite number of at least 0"),
        ({"score_share": -0.1}, "score_share is -0.1; it must be a finite number of at least 0"),
        ({"layout": "spiral"}, "layout.*spiral.*aligned.*centered"),
        ({"interpolation": "nearest"}, "interpolation.*nearest.*bilinear.*bicubic.*mlp"),
        ({"leaf_position": "corner"}, "leaf_position.*corner.*centre.*mean"),
        ({"coarsest": "none"}, "coarsest.*none.*any.*native"),
        ({"llm_positions": "spiral"}, "llm_positions.*spiral.*raster.*sequential"),
        ({"llm_weight": "heavy"}, "llm_weight.*heavy.*each.*native"),
        ({"interpolation": "mlp"}, "mlp"),
    ],
    ids=str,
)
def test_a_bad_value_is_named_with_what_is_allowed(values, message):
    with pytest.raises(ValueError, match=message):
        QLIPConfig(**values)
    with pytest.raises(ValueError, match=message):
        QLIPConfig.from_dict(values)


COUNTS = ("max_tokens", "image_size", "max_cells", "structure_size", "seed")
NUMBERS = ("alpha", "size_bias", "llm_size_bias", "score_share", "question_share")
FLAGS = ("mlp_residual", "noise_floor", "keep_split_cells", "thumbnail")
WORDS = (
    "criterion",
    "layout",
    "interpolation",
    "leaf_position",
    "coarsest",
    "split_order",
    "llm_positions",
    "llm_weight",
)
WORDS += ("geometry", "placement", "budget", "tiling")


@pytest.mark.parametrize(
    ("names", "values", "allowed"),
    [
        (COUNTS, [96.5, 96.0, math.nan, "96", True, [96], {}], "it must be an integer"),
        (COUNTS[3:], [None], "it must be an integer"),
        (COUNTS, [-1, 2**63], "it must be (at least|below)"),
        (NUMBERS, ["x", True, None, [1.0], {}], "it must be a number"),
        (NUMBERS[1:], [math.nan, math.inf, -math.inf], "it must be a finite number"),
        (FLAGS, [1, "true", None, 0.0], "it must be true or false"),
        (WORDS, [1, None, True, [], "no"], "allowed are '"),
        (("mlp",), [1, True, 0.5, ["prior.pt"]], "it must be the path"),
    ],
)
def test_a_value_of_another_type_is_named_with_its_field_and_what_is_allowed(names, values, allowed):
    assert {*COUNTS, *NUMBERS, *FLAGS, *WORDS, "mlp"} == {field.name for field in dataclasses.fields(QLIPConfig)}
    for name in names:
        for value in values:
            for make in (lambda given: QLIPConfig(**given), QLIPConfig.from_dict):
                with pytest.raises((TypeError, ValueError), match=f"^{name} is .*{allowed}") as error:
                    make({name: value})
                assert repr(value) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("values", [None, 3, "alpha", [0.5], True], ids=str)
def test_settings_that_are_no_object_are_refused(values):
    with pytest.raises(TypeError, match="the QLIP settings are .*; they must be an object of settings by name"):
        QLIPConfig.from_dict(values)


def test_an_infinite_threshold_that_transformers_wrote_is_read():
    written = json.loads(PreTrainedConfig(qlip={"alpha": math.inf}).to_json_string())["qlip"]
    assert written["alpha"] != math.inf and QLIPConfig.from_dict(written).alpha == math.inf


def test_numbers_of_numpy_are_kept_as_pythons() -> None:
    """As of a range of values; JSON takes no others."""
    settings = QLIPConfig(alpha=np.float32(0.5), max_tokens=np.int64(96), score_share=np.float64(0.5), seed=np.uint8(3))
    assert settings == QLIPConfig(alpha=0.5, max_tokens=96, score_share=0.5, seed=3)
    assert json.loads(json.dumps(settings.to_dict())) == settings.to_dict()
    with pytest.raises(TypeError, match=r"max_tokens is 96\.0; it must be an integer"):
        QLIPConfig(max_tokens=np.float64(96))
