"""What is kept of visitors is bounded: the one idle longest loses their picture, and nobody by requests without one."""

from __future__ import annotations

from gradio_client import Client

from llava.serve.engine import ChatEngine
from llava.serve.web.backend import EngineBackend
from llava.serve.web.handlers import Demo
from llava.serve.web.visitors import Latest, PictureHolders
from tests.llava.serve.web.clients import FIRST, SECOND, alone, ask, controls, refused, show
from tests.llava.serve.web.pages import page_of


def test_the_entries_that_were_set_last_are_kept() -> None:
    kept: Latest[str, int] = Latest(2)
    for name, value in (("a", 1), ("b", 2), ("a", 3), ("c", 4)):
        kept[name] = value
    assert dict(kept) == {"a": 3, "c": 4}


def test_the_visitor_idle_longest_is_dropped() -> None:
    holders, dropped = PictureHolders(2), list[str]()
    holders.drop.append(dropped.append)
    for visitor in ("a", "b", "a", None, "c", "d"):
        holders.hold(visitor)
    assert dropped == ["b", "a"]
    holders.forget("c")
    holders.hold("e")
    assert dropped == ["b", "a"]


def test_a_dropped_visitor_may_open_the_picture_again(engine: ChatEngine) -> None:
    demo = Demo(EngineBackend(engine))
    demo.holders.most = 2
    with page_of(demo) as url:
        client = Client(url, verbose=False, analytics_enabled=False)

        def visit(name: str, path: str | None = None) -> Client:
            client.session_hash = name
            if path is not None:
                show(client, path)
            return client

        visit("first", FIRST)
        visit("second", SECOND)
        for number in range(8):  # as by programs, each with a session
            visit(f"nobody-{number}").predict(*controls(), api_name="/look")
        assert ask(visit("first"))[-1][-1] == ("assistant", alone(engine, FIRST))
        visit("third", SECOND)  # the second has been idle longest
        assert "There is no picture yet" in refused(visit("second"), "/ask", "What?", *controls())
        assert ask(visit("second", SECOND))[-1][-1] == ("assistant", alone(engine, SECOND))
        client.close()
