"""The worker's flags."""

from __future__ import annotations

from typing import Any

import pytest

from llava.serve import model_worker
from llava.serve.engine import ChatEngine
from llava.serve.engine.params import EngineLimits
from llava.serve.model_worker import parse_args


@pytest.fixture(autouse=True)
def no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LLAVA_WORKER_TOKEN", raising=False)
    monkeypatch.delenv("LLAVA_API_KEY", raising=False)


def test_flags_have_llavas_names_and_defaults() -> None:
    args = parse_args([])
    assert (args.host, args.port) == ("127.0.0.1", 21002)
    assert (args.worker_address, args.controller_address) == ("http://localhost:21002", "http://localhost:21001")
    assert (args.limit_model_concurrency, args.stream_interval, args.no_register) == (5, 1, False)
    given = "--model-path p --model-base b --model-name n --device cpu --load-4bit --use-flash-attn --multi-modal"
    args = parse_args([*given.split(), "--port", "1234", "--no-register"])
    assert (args.model_name, args.load_4bit, args.use_flash_attn) == ("n", True, True)
    assert args.worker_address == "http://localhost:1234"


def test_a_worker_starts_as_llavas_documentation_has_it() -> None:
    launch = "--host 0.0.0.0 --controller http://localhost:10000 --port 40000 --worker http://localhost:40000"
    args = parse_args([*launch.split(), "--model-path", "liuhaotian/llava-v1.5-13b"])
    assert (args.controller_address, args.worker_address) == ("http://localhost:10000", "http://localhost:40000")
    assert args.worker_token is None


def test_an_address_may_end_in_a_slash() -> None:
    args = parse_args(["--worker-address", "http://localhost:40000/", "--controller-address", "http://localhost:1/"])
    assert (args.worker_address, args.controller_address) == ("http://localhost:40000", "http://localhost:1")


def test_an_address_at_localhost_that_is_given_is_taken() -> None:
    """As in one pod, or through a tunnel."""
    flags = ["--controller-address", "http://front:21001", "--worker-token", "s"]
    assert parse_args([*flags, "--worker-address", "http://localhost:9"]).worker_address == "http://localhost:9"


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("0.0.0.0", "http://localhost:21002"),
        ("localhost", "http://localhost:21002"),
        ("127.0.0.2", "http://127.0.0.2:21002"),
        ("::1", "http://[::1]:21002"),
        ("::", "http://[::1]:21002"),
    ],
)
def test_a_worker_registers_where_it_listens(host: str, address: str) -> None:
    assert parse_args(["--host", host]).worker_address == address


@pytest.mark.parametrize("host", ["10.0.0.5", "2001:db8::7", "gpu1"])
def test_a_worker_on_an_address_of_the_network_registers_it_with_a_token(host: str) -> None:
    flags = ["--host", host, "--worker-token", "s", "--controller-address", "http://front:21001"]
    assert parse_args(flags).worker_address == f"http://{f'[{host}]' if ':' in host else host}:21002"
    assert parse_args(["--host", host, "--no-register"])  # nothing is registered, nothing is needed
    assert parse_args(["--host", host, "--worker-address", "http://localhost:9"])


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--host", "10.0.0.5"], "--host 10.0.0.5 is also the address to register, which is not a loopback address"),
        (["--host", "gpu1", "--port", "0"], "so --worker-token is needed; or give --worker-address"),
        (["--host", "fe80::1%eth0", "--worker-token", "s"], "cannot be registered as an address (an address must read"),
        (
            ["--host", "::1", "--controller-address", "http://front:21001", "--worker-token", "s"],
            "at [::1]; give --worker-address, such as http://THIS-MACHINE:21002",
        ),
        (["--worker-address", "localhost:21002"], "'localhost:21002': an address must read http://HOST:PORT"),
        (["--worker-address", "http://localhost:99999", "--no-register"], "argument --worker-address/--worker: 'http:"),
        (["--controller-address", "http://a/b"], "argument --controller-address: 'http://a/b': an address must read"),
        (["--model-name", "m\nn"], "argument --model-name: 'm\\nn' is not a name of 1 to 500 printable"),
        (["--worker-token", ""], "argument --worker-token: a secret may not be empty"),
        (["--controller-address", "http://10.0.0.1:21001"], "another machine's, so --worker-token is needed"),
        (["--worker-address", "http://10.0.0.1:21002"], "another machine's, so --worker-token is needed"),
        (
            ["--controller-address", "http://front:21001", "--worker-token", "s", "--host", "0.0.0.0"],
            "at localhost; give --worker-address, such as http://THIS-MACHINE:21002",
        ),
        (
            ["--controller-address", "http://front:21001", "--worker-token", "s", "--port", "0"],
            "at localhost; give --worker-address, such as http://THIS-MACHINE:PORT",
        ),
        (["--api-key", "k"], "--worker-token"),
        (["--load-4bit", "--load-8bit"], "not allowed with"),
    ],
)
def test_flags_that_cannot_work_are_refused(flags: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_args(flags)
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line


def test_the_concurrency_limit_is_the_size_of_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    def load(args: Any, **options: Any) -> ChatEngine:
        seen.update(options)
        raise RuntimeError("that is enough")

    monkeypatch.setattr(model_worker, "load_engine", load)
    flags = "--limit-model-concurrency 3 --max-waiting 9 --prefix-cache-mib 7 --use-flash-attn --port=0"
    assert model_worker.main([*flags.split(), "--max-batch-tokens", "5000", "--max-join-tokens", "400"]) == 2
    limits = EngineLimits(3, max_batch_tokens=5000, max_join_tokens=400, max_waiting=9, max_prefix_mib=7)
    assert seen == {"switchable": True, "limits": limits, "use_flash_attn": True}
