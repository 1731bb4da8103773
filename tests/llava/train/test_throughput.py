"""Counts of training batches and the rates of a log line, by hand counts and a clock that the tests move."""

from __future__ import annotations

import json
import logging
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llava.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from llava.train.left_out import LeftOutCounts, Skipped
from llava.train.throughput import BatchCounts, Throughput, peak_memory_gib


def sample(text: int, targets: int, images: tuple[int, ...] = ()) -> dict:
    """A sample of `text` tokens, the last `targets` of them trained on, and images of some numbers of tokens."""
    ids = torch.tensor([1, *[IMAGE_TOKEN_INDEX] * len(images), *range(5, 4 + text)])
    labels = torch.full_like(ids, IGNORE_INDEX)
    labels[len(ids) - targets :] = ids[len(ids) - targets :]
    return {"input_ids": ids, "labels": labels, "images": [None] * len(images), "visual_tokens": sum(images)}


def left_out(reason: str, is_bad: bool = True) -> dict:
    return {"skipped": Skipped(reason, is_bad)}


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_batch_is_counted_in_tokens_of_the_language_model():
    counts = BatchCounts.of([sample(10, 4, (30,)), sample(6, 5), sample(8, 1, (20, 12))])
    assert counts == BatchCounts(
        samples=3,
        text_tokens=10 + 6 + 8,
        visual_tokens=30 + 0 + 32,
        target_tokens=4 + 5 + 1,
        padded_tokens=3 * 40,
        skipped=(),
    )


def test_the_first_token_is_no_target_since_nothing_predicts_it():
    assert BatchCounts.of([sample(4, 4)]).target_tokens == 3


def test_packed_samples_share_rows():
    samples = [sample(10, 4, (30,)), sample(6, 5), left_out("x"), sample(8, 1, (20,))]
    assert BatchCounts.of(samples, packs=[0, 1, 1]).padded_tokens == 2 * 40  # rows of 40 and 6 + 28


def test_a_batch_without_samples_is_one_token():
    counts = BatchCounts.of([left_out("x"), left_out("y", is_bad=False)])
    assert counts == BatchCounts(padded_tokens=1, skipped=(Skipped("x", True), Skipped("y", False)))


def test_packs_of_other_samples_are_refused():
    with pytest.raises(ValueError, match="packs has 2 entries, but 1 samples"):
        BatchCounts.of([sample(4, 1), left_out("x")], packs=[0, 0])


def test_counts_travel_between_processes():
    counts = BatchCounts.of([sample(4, 1), left_out("x")])
    assert pickle.loads(pickle.dumps(counts)) == counts


@given(st.lists(st.tuples(st.integers(2, 20), st.lists(st.integers(1, 9), max_size=2)), min_size=1, max_size=6))
def test_a_row_for_each_sample_pads_no_less_than_the_real_tokens(shapes):
    counts = BatchCounts.of([sample(text, 1, tuple(images)) for text, images in shapes])
    lengths = [text + sum(images) for text, images in shapes]
    assert counts.text_tokens + counts.visual_tokens == sum(lengths)
    assert counts.padded_tokens == len(lengths) * max(lengths)


def test_a_report_gives_the_rates_since_the_last_one_and_totals():
    clock = Clock()
    throughput = Throughput(max_bad_samples=0, clock=clock)
    batch = BatchCounts(samples=3, text_tokens=24, visual_tokens=62, target_tokens=10, padded_tokens=120)
    clock.now += 60  # until the first batch is ready
    throughput.add(batch)
    clock.now += 1
    clock.now += 1
    throughput.add(batch)
    report = throughput.report()
    assert report.pop("memory_gib") > 0
    assert report == {
        "samples_per_second": 3.0,
        "text_tokens_per_second": 24.0,
        "visual_tokens_per_second": 62.0,
        "target_tokens_per_second": 10.0,
        "padding_share": pytest.approx(1 - 86 / 120, abs=1e-4),
        "target_tokens": 20,
        "dropped_samples": 0,
    }
    clock.now += 4
    throughput.add(batch)
    later = throughput.report()
    assert (later["samples_per_second"], later["target_tokens"]) == (0.75, 30)


def test_time_in_a_pause_does_not_count():
    clock = Clock()
    throughput = Throughput(max_bad_samples=0, clock=clock)
    throughput.add(BatchCounts(samples=6))
    clock.now += 2
    with throughput.paused():
        clock.now += 50
    assert throughput.report()["samples_per_second"] == 3.0


def test_a_report_adds_up_all_processes():
    counts = BatchCounts(samples=5, target_tokens=7, text_tokens=9, padded_tokens=12)
    other = (counts, LeftOutCounts(2, {"b": 4, "c": 5}), 1e6)
    clock = Clock()
    throughput = Throughput(max_bad_samples=3, gather=lambda mine: [mine, other], clock=clock)
    throughput.add(BatchCounts(1, 3, 0, 2, 3, (Skipped("a", True), Skipped("b", True), Skipped("d", False))))
    clock.now += 2
    report = throughput.report()
    assert report["samples_per_second"] == 3.0
    assert report["padding_share"] == pytest.approx(1 - 12 / 15)
    assert (report["target_tokens"], report["dropped_samples"], report["memory_gib"]) == (9, 5, 1e6)
    assert throughput.state()["bad_samples"] == ["a", "b", "c"]


def test_a_sample_that_is_bad_in_every_epoch_counts_once():
    throughput = Throughput(max_bad_samples=1)
    for _ in range(3):
        throughput.add(BatchCounts(skipped=(Skipped("a", True, index=7),)))
        throughput.update()
    totals = {"target_tokens": 0, "samples": 0, "dropped_samples": 3, "bad_samples": ["a"], "bad_indices": [7]}
    assert throughput.state() == totals


def test_samples_that_are_too_long_are_not_bad():
    throughput = Throughput(max_bad_samples=0)
    throughput.add(BatchCounts(skipped=tuple(Skipped(f"{number}", False) for number in range(50))))
    assert throughput.report()["dropped_samples"] == 50


def test_a_run_of_which_nothing_can_be_used_ends():
    """After 100 samples, or at its end; not if one was trained on."""
    for samples in ([left_out("photo too long", is_bad=False)], [sample(4, 2), left_out("photo too long", False)]):
        counts = Throughput(0)
        counts.add(BatchCounts.of(samples))
        counts.update()
        if len(samples) == 2:
            counts.finish()
            continue
        with pytest.raises(
            ValueError,
            match="samples were left out 1 times over all epochs, for example photo too",
        ):
            counts.finish()
        counts.add(BatchCounts.of(samples * 99))
        with pytest.raises(ValueError, match="samples were left out 100 times over all"):
            counts.update()


def test_a_sample_that_is_left_out_is_logged_once(caplog):
    throughput = Throughput(max_bad_samples=5)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            throughput.add(BatchCounts(skipped=(Skipped("x.json: sample 3: too long", False),)))
    assert [record.getMessage() for record in caplog.records] == ["left out: x.json: sample 3: too long"]


def test_of_many_samples_that_are_left_out_the_first_hundred_are_named(caplog):
    throughput = Throughput(0)
    throughput.add(BatchCounts.of([left_out(f"too long {i}", is_bad=False) for i in range(150)]))
    assert len(caplog.messages) == 101
    assert caplog.messages[-1] == "more samples are left out; dropped_samples counts them"
    throughput.add(BatchCounts.of([sample(4, 2)]))
    assert throughput.report()["dropped_samples"] == 150


def test_totals_survive_a_resume():
    before = Throughput(max_bad_samples=1)
    before.add(BatchCounts(target_tokens=11, skipped=(Skipped("a", True),)))
    before.update()
    after = Throughput(max_bad_samples=1)
    after.restore(json.loads(json.dumps(before.state())))
    after.add(BatchCounts(target_tokens=4, skipped=(Skipped("a", True),)))
    report = after.report()
    assert (report["target_tokens"], report["dropped_samples"]) == (15, 2)
    after.add(BatchCounts(skipped=(Skipped("b", True),)))
    with pytest.raises(ValueError, match="a; b"):
        after.finish()


def test_peak_memory_is_at_least_what_python_with_torch_takes():
    assert 0.05 < (peak_memory_gib() or 0) < 1000
