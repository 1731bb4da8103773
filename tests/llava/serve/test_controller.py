"""The controller's flags."""

from __future__ import annotations

import pytest

from llava.serve.controller import parse_args


def test_flags_have_llavas_names_and_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LLAVA_WORKER_TOKEN", raising=False)
    args = parse_args([])
    assert (args.host, args.port, args.dispatch_method) == ("127.0.0.1", 21001, "shortest_queue")
    assert parse_args(["--dispatch-method", "lottery"]).dispatch_method == "lottery"
    assert not hasattr(args, "max_images")  # it passes requests on; what is in them is for the worker to check
    monkeypatch.setenv("LLAVA_WORKER_TOKEN", "s3cret")
    assert parse_args(["--host", "0.0.0.0"]).worker_token == "s3cret"


def test_a_controller_that_no_worker_could_register_with_does_not_start(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("LLAVA_WORKER_TOKEN", raising=False)
    with pytest.raises(SystemExit):
        parse_args(["--host", "0.0.0.0"])
    assert "--host 0.0.0.0 needs --worker-token" in capsys.readouterr().err
