"""The page: its heading, and what it loads."""

from __future__ import annotations

import os
import re
import socket
from contextlib import closing

import gradio as gr
import httpx
import pytest
from gradio_client import handle_file

from llava.serve.engine import ChatEngine
from llava.serve.web.controls import CLIP
from llava.serve.web.handlers import Demo
from llava.serve.web.launch import NO_LINK, serve, set_up_queue
from llava.serve.web.page import PageText, build_page
from tests.llava.serve.programs import free_port, has_ipv6
from tests.llava.serve.web.clients import FIRST, QUESTION, NewVisitor, alone, talk_of


def test_a_page_on_an_ipv6_address_is_served_and_named_as_a_url(demo: Demo, capsys: pytest.CaptureFixture[str]) -> None:
    if not has_ipv6():
        pytest.skip("no IPv6 here")
    page, port = build_page(demo), free_port()
    serve(page, "::1", port, block=False)
    assert capsys.readouterr().out == f"the page is at http://[::1]:{port}/\n"
    assert httpx.get(page.local_url).status_code == 200
    page.close()


def test_a_page_is_served_beside_a_dead_proxy_on_a_machine_that_is_slow(
    demo: Demo, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gradio asks its own server whether it is up: through the proxies, if none is excepted, and for three seconds."""
    with closing(socket.create_server(("127.0.0.1", 0))) as dead:
        proxies = {"HTTP_PROXY": f"http://127.0.0.1:{dead.getsockname()[1]}", "NO_PROXY": "example.org"}
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    for name, value in proxies.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("gradio.networking.url_ok", lambda url: False)  # what a slow machine's page is taken for
    page = build_page(demo)
    serve(page, "127.0.0.1", free_port(), block=False)
    assert httpx.get(page.local_url, trust_env=False).status_code == 200
    assert {name: value for name, value in os.environ.items() if name.lower().endswith("_proxy")} == proxies
    page.close()


@pytest.mark.parametrize("heading", [True, False])
def test_a_page_inside_another_has_no_heading(demo: Demo, heading: bool) -> None:
    blocks = build_page(demo, PageText("A notice.", heading=heading)).blocks.values()
    (head,) = (block for block in blocks if getattr(block, "elem_id", None) == "head")
    assert head.visible == heading


def test_the_page_asks_nothing_of_other_hosts(page_url: str) -> None:
    page = httpx.get(page_url)
    assert re.findall(r"<(?:script|link)[^>]+(?:src|href)=\"(?:https?:)?//(?!127\.0\.0\.1)[^\"]+", page.text) == []
    assert "default-src 'self'" in page.headers["content-security-policy"]
    assert page.headers["referrer-policy"] == "no-referrer"


@pytest.mark.parametrize("route", ["monitoring", "monitoring/", "monitoring/summary", "monitoring/key"])
@pytest.mark.parametrize("prefix", ["", "gradio_api/"])
def test_nobody_reads_statistics_of_visitors(
    page_url: str, route: str, prefix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nor makes the server print the key that would open them."""
    reply = httpx.get(page_url + prefix + route, follow_redirects=True)
    assert reply.status_code in (403, 404)
    assert capsys.readouterr().out == ""


def test_no_statistics_of_visitors_are_computed() -> None:
    page = gr.Blocks()
    record = {"function": "ask", "status": "success", "process_time": 1.0}
    page._queue.events_recorded += 1
    assert page._queue.compute_analytics_summary([record])["functions"].keys() == {"ask"}  # as Gradio does
    set_up_queue(page, 16)
    page._queue.events_recorded += 1
    assert page._queue.compute_analytics_summary([record])["functions"] == {}


def test_without_a_tunnel_the_page_is_served_here_and_says_so_in_one_line(
    demo: Demo, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object, **__: object) -> str:
        raise RuntimeError("no network")

    monkeypatch.setattr("gradio.networking.setup_tunnel", fail)
    page = build_page(demo)
    serve(page, "127.0.0.1", free_port(), share=True, block=False)
    told = capsys.readouterr()
    assert (told.out, told.err) == (f"the page is at {page.local_url}\n", f"--share: {NO_LINK}\n")
    assert httpx.get(page.local_url).status_code == 200
    page.close()


def test_programs_call_the_page_with_named_controls_and_leave_out_what_has_a_default(
    new_visitor: NewVisitor, engine: ChatEngine
) -> None:
    program = new_visitor(None)
    endpoints = program.view_api(print_info=False, return_format="dict")["named_endpoints"]
    controls = ["mode", "alpha", "budget", "temperature", "top_p", "max_new_tokens", "model"]
    before = {"/ask": ["question"], "/compare": ["question"], "/open_picture": ["upload"]}
    for name, endpoint in endpoints.items():
        expected = [] if name == "/clear" else [*before.get(name, []), *controls]
        assert [each["parameter_name"] for each in endpoint["parameters"]] == expected
        assert not [each["label"] for each in endpoint["returns"] if each["label"].startswith("value_")]
    assert len(endpoints) == 6
    program.predict(handle_file(FIRST), api_name="/open_picture")
    chat, *_ = program.predict(QUESTION, mode=CLIP, temperature=0, api_name="/ask")
    assert talk_of(chat)[-1] == ("assistant", alone(engine, FIRST, enabled=False))
    program.predict(api_name="/regenerate")
    program.predict(QUESTION, api_name="/compare")
    assert "visual token" in program.predict(budget=20, api_name="/look")[1]
