"""`QLIPConfig`: defaults, checks, and the trip through JSON."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest

from qlip import QLIPConfig

DEFAULTS = {
    "alpha": 0.8,
    "criterion": "structure",
    "max_tokens": 1152,
    "layout": "aligned",
    "image_size": None,
    "interpolation": "bicubic",
    "mlp": None,
    "mlp_residual": True,
    "leaf_position": "centre",
    "coarsest": "native",
    "structure_size": 5,
    "thumbnail": False,
    "llm_positions": "raster",
    "size_bias": 0.0,
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
        {"size_bias": 1.0, "llm_size_bias": -0.5, "seed": 3, "max_cells": 4096},
    ],
    ids=str,
)
def test_survives_the_trip_through_strict_json(values):
    config = QLIPConfig(**values)
    text = json.dumps(config.to_dict(), allow_nan=False)
    assert QLIPConfig.from_dict(json.loads(text)) == config


def test_what_a_dict_leaves_out_takes_its_default():
    assert QLIPConfig.from_dict({"alpha": 0.3}) == QLIPConfig(alpha=0.3)


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
        ({"criterion": "entropy"}, "criterion.*entropy.*gradient.*structure.*variance.*diagonal.*random"),
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


@pytest.mark.parametrize("name", ["max_tokens", "image_size", "max_cells", "structure_size"])
def test_a_count_is_a_whole_number(name):
    with pytest.raises(TypeError, match=f"{name}.*12.5"):
        QLIPConfig(**{name: 12.5})
