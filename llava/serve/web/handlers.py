"""What happens when a visitor does something: sessions in, sessions and things to show out. Knows no layout.

Text that a model or a visitor wrote is escaped where it becomes a message, a toast or HTML: `Session.messages`,
`toasts` and `views`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import gradio as gr
from PIL import Image

from llava.images import ImageError
from llava.model.prepared_image import PreparedImage
from llava.serve.engine.params import QLIPOptions
from llava.serve.http.failures import explain
from llava.serve.web import views
from llava.serve.web.backend import Backend, Piece, Query
from llava.serve.web.controls import CLIP, QLIP, Controls, read_question
from llava.serve.web.moderation import Moderator
from llava.serve.web.session import Messages, Session, keep_drawing, open_upload
from llava.serve.web.toasts import advised, complaining, complaint, encodable, warn
from llava.serve.web.views import Cost

SUBTITLES = {CLIP: "uniform grid", QLIP: "quadtree"}


class Tally:
    """Adds up one answer's text and cost as its pieces come. The clock runs from the making."""

    def __init__(self, tokens: int) -> None:
        """
        Args:
            tokens: Visual tokens, until the model itself says how many.
        """
        self.text, self.cost = "", Cost(tokens)
        self._start = time.perf_counter()

    def take(self, piece: Piece) -> None:
        """Adds a piece."""
        if piece.visual_tokens is not None:
            self.cost = replace(self.cost, tokens=piece.visual_tokens)
        if piece.text and self.cost.first is None:
            self.cost = replace(self.cost, first=time.perf_counter() - self._start)
        self.text += encodable(piece.text)

    def end(self) -> None:
        """Stops the clock."""
        self.cost = replace(self.cost, total=time.perf_counter() - self._start)


class Demo:
    """The event handlers. Answers of several visitors go on side by side."""

    def __init__(self, backend: Backend, moderator: Moderator | None = None) -> None:
        """
        Args:
            backend: Gives answers and views.
            moderator: Checks questions before they are asked; None lets all pass.
        """
        self.backend = backend
        self.moderator = moderator
        self._running: dict[str | None, set[asyncio.Task[Any] | None]] = {}

    def open_picture(self, session: Session, upload: Mapping[str, Any] | None, *controls: Any) -> tuple[Any, ...]:
        """Starts a new conversation about an uploaded picture (Gradio's description of the file), or about none.

        Returns what the picture's place holds, then session, view, its cost, chatbot, last cost and comparison. A
        browser may tell of one change more than once.
        """
        if not (upload is None or isinstance(upload, Mapping)):
            raise complaint("The picture is no uploaded file. Choose one, or reload the page.")
        source = str(upload.get("path")) if upload else None
        if source == session.source:
            return (gr.skip(),) * 7
        picture, place = None, gr.skip()
        try:
            picture = open_upload(upload) if upload else None
        except ImageError as error:
            warn(advised(explain(error)), title="This picture cannot be used")
            place = None
        session = Session(picture, source)
        return place, session, *self.look(session, *controls), [], views.NOTHING_SPENT, gr.update(visible=False)

    def look(self, session: Session, *controls: Any) -> tuple[str | None, str]:
        """Draws what the model would see and says what it costs."""
        with complaining():
            said = Controls.read(controls, self.backend)
        if session.picture is None:
            return None, views.NOTHING_SEEN
        with complaining():
            view = self.backend.look(session.picture, said.options(self.backend))
            drawing = keep_drawing(views.draw(view, self.backend.pixels))
        return drawing, views.meter(view, session.picture, self.backend.native_tokens)

    async def ask(
        self, request: gr.Request, session: Session, question: Any, *controls: Any
    ) -> AsyncGenerator[tuple[Session, Messages, str, Any], None]:
        """Streams the answer into session, chatbot and cost line; what else it yields is the question box's.

        The box is emptied once the request has been taken on. If no text comes, the question is put back.
        """
        with complaining():
            asked = read_question(question)
        async with aclosing(self._converse(request, session, session, asked, controls)) as steps:
            async for step in steps:
                yield step

    async def regenerate(
        self, request: gr.Request, session: Session, *controls: Any
    ) -> AsyncGenerator[tuple[Session, Messages, str], None]:
        """Asks the last question again, with the controls as they are now; the old answer stays until then."""
        if not session.exchanges:
            raise complaint("There is no answer to give anew. Ask something first.")
        question = session.exchanges[-1].question
        async with aclosing(self._converse(request, session, session.without_last(), question, controls)) as steps:
            async for *step, _ in steps:
                yield step[0], step[1], step[2]

    async def compare(
        self, request: gr.Request, session: Session, question: Any, *controls: Any
    ) -> AsyncGenerator[tuple[Any, ...], None]:
        """Answers one question seen both ways, outside the conversation.

        Yields the panel, its question, and head and body of either side. One answer comes after the other, so that
        each has its own time.
        """
        last = session.exchanges[-1].question if session.exchanges else ""
        with complaining():
            asked, said = read_question(question) or last, Controls.read(controls, self.backend)
        picture = self._checked(session, asked)
        if self.backend.defaults is None:
            raise complaint("This model sees one way only, so there is nothing to compare.")
        seen: dict[str, PreparedImage] = {}
        queries: dict[str, Query] = {}
        with complaining():
            for way in (CLIP, QLIP):
                options = said.options(self.backend, way)
                seen[way] = await self._prepare(picture, asked if way == CLIP else None, options)
                turns = replace(session, exchanges=()).turns(asked)
                queries[way] = Query(turns, said.sampling(), options, said.model)
        tallies: dict[str, Tally] = {}

        def bodies() -> list[str]:
            sides = []
            for way, view in seen.items():
                tally = tallies.get(way)
                text, cost = (None, Cost(view.tokens)) if tally is None else (tally.text.strip(), tally.cost)
                sides.append(views.compare_body(way, SUBTITLES[way], text, cost))
            return sides

        drawn = [asyncio.to_thread(views.compare_head, way, view, self.backend.pixels) for way, view in seen.items()]
        heads = await asyncio.gather(*drawn)
        left, right = bodies()
        yield gr.update(visible=True), views.compare_question(asked), heads[0], left, heads[1], right
        for way, view in seen.items():
            tallies[way] = Tally(view.tokens)
            async with aclosing(self._answer(request, queries[way], tallies[way])) as steps:
                async for _ in steps:
                    left, right = bodies()
                    yield gr.skip(), gr.skip(), gr.skip(), left, gr.skip(), right

    def clear(self, session: Session) -> tuple[Session, Messages, str, Any]:
        """Forgets the conversation and keeps the picture."""
        return replace(session, exchanges=()), [], views.NOTHING_SPENT, gr.update(visible=False)

    async def leave(self, request: gr.Request) -> None:
        """Stops what a visitor who has gone away was waiting for, be it that no text has come yet."""
        for task in filter(None, list(self._running.get(request.session_hash, ()))):
            task.cancel()

    async def models(self) -> Any:
        """Offers the models that there are now."""
        with complaining():
            names = [encodable(name) for name in await self.backend.models()]
        return gr.update(choices=names, value=names[0] if names else None)

    async def _converse(
        self, request: gr.Request, before: Session, session: Session, question: str, controls: tuple[Any, ...]
    ) -> AsyncGenerator[tuple[Session, Messages, str, Any], None]:
        """Yields session, messages, cost and the question box as the answer grows; nothing before it is taken on.

        Args:
            request: The visitor's.
            before: What to return to if it fails before its first text.
            session: What the exchange is added to.
            question: Without blanks around it.
            controls: As a client sent them.
        """
        with complaining():
            said = Controls.read(controls, self.backend)
        picture = self._checked(session, question)
        with complaining():
            options = said.options(self.backend)
            view = await self._prepare(picture, question, options)
            query = Query(session.turns(question), said.sampling(), options, said.model)
        tally, box = Tally(view.tokens), ""
        try:
            async with aclosing(self._answer(request, query, tally)) as steps:
                async for _ in steps:
                    answered = session.with_answer(question, tally.text.strip())
                    yield answered, answered.messages(), views.cost_line(tally.cost), box
                    box = gr.skip()  # the visitor may be typing the next question
        except gr.Error:
            if box != "" and not tally.text.strip():
                yield before, before.messages(), views.NOTHING_SPENT, question
            raise
        if not tally.text.strip():
            gr.Info("The model had nothing to say. Ask in other words.")

    def _checked(self, session: Session, question: str) -> Image.Image:
        if session.picture is None:
            raise complaint("There is no picture yet. Choose one, then ask.")
        if not question:
            raise complaint("The question is empty. Type one, then press Ask.")
        return session.picture

    async def _prepare(self, picture: Image.Image, question: str | None, options: QLIPOptions) -> PreparedImage:
        if self.moderator is not None and question is not None:
            await self.moderator.check(question)
        return await asyncio.to_thread(self.backend.look, picture, options)

    async def _answer(self, request: gr.Request, query: Query, tally: Tally) -> AsyncGenerator[None, None]:
        """Takes one step after the other; the last when the answer has ended.

        Stops the model when it is closed, or when the visitor leaves.
        """
        task = asyncio.current_task()
        running = self._running.setdefault(request.session_hash, set())
        running.add(task)
        try:
            with complaining():
                async with aclosing(self.backend.ask(query)) as pieces:
                    async for piece in pieces:
                        tally.take(piece)
                        yield
            tally.end()
            yield
        finally:
            running.discard(task)
            if not running:
                self._running.pop(request.session_hash, None)
