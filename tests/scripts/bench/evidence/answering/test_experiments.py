"""The experiments' ways."""

from __future__ import annotations

import json

from qlip import QLIPConfig
from scripts.bench.evidence.answering.experiments import EXPERIMENTS


def test_every_way_has_valid_settings_and_a_name_of_its_own():
    for experiment in EXPERIMENTS.values():
        names = [way.name for way in experiment.ways]
        assert len(set(names)) == len(names)
        keys = [json.dumps(way.key(QLIPConfig(coarsest="native")), sort_keys=True) for way in experiment.ways]
        assert len(keys) == len(experiment.ways)
