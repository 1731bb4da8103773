"""Event handlers of pictures: they open them, add them to a conversation and draw what the model sees."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import gradio as gr

from llava.images import ImageError
from llava.serve.engine.explain import Explanation
from llava.serve.http.failures import explain
from llava.serve.web import views
from llava.serve.web.backend import Backend, Query
from llava.serve.web.chart import Curve, accuracy_chart
from llava.serve.web.controls import CONTROLS, Controls, describe, read_press
from llava.serve.web.leaf_map import leaf_map
from llava.serve.web.runs import Runs
from llava.serve.web.session import MAX_PICTURES, Session, open_upload, save_drawing
from llava.serve.web.toasts import errors_as_toasts, toast_error, warn, with_advice


class PictureHandlers:
    """Handlers that need no running model."""

    def __init__(self, backend: Backend, curve: Curve | None = None) -> None:
        """
        Args:
            backend: Prepares pictures.
            curve: What is known of the model's accuracy by tokens; None shows no chart.
        """
        self.backend = backend
        self.curve = curve
        self.runs = Runs()
        self._opened: dict[str | None, str | None] = {}  # the file that each visitor opened last, or is opening

    async def open_picture(
        self, request: gr.Request, session: Session, press: Any, upload: Mapping[str, Any] | None, *values: Any
    ) -> tuple[Any, ...]:
        """Starts a new conversation about an uploaded picture, given as Gradio's description of a file, or None.

        Ends running answers about the picture before.
        Returns the picture component's value, the session, the drawing, its cost, the chat, the last answer's cost and
        the comparison. A browser may report the same change more than once, even while the picture is being opened:
        the second report must not clear a conversation that has started meanwhile.
        """
        if not (upload is None or isinstance(upload, Mapping)):
            raise toast_error("The picture is no uploaded file. Choose one, or reload the page.")
        source = str(upload.get("path")) if upload else None
        before = self._opened.get(request.session_hash, session.source)
        if source == before:
            return (gr.skip(),) * 7
        self._opened[request.session_hash] = source
        picture, shown = None, gr.skip()
        try:
            await self.runs.stop(request.session_hash, press=read_press(press))
            try:
                picture = await asyncio.to_thread(open_upload, upload) if upload else None
            except ImageError as error:
                warn(with_advice(explain(error)), title="This picture cannot be used")
                shown = None
            session = Session(picture, source)
            drawn = await asyncio.to_thread(self.draw, session, *values)
            return shown, session, *drawn, [], views.NO_COST, gr.update(visible=False)
        except BaseException:
            self._opened[request.session_hash] = before  # nothing was opened: the same file may be tried again
            raise

    def add_picture(
        self, request: gr.Request, session: Session, upload: Any, *values: Any
    ) -> tuple[Session, str, str | None, str]:
        """Adds an uploaded picture to the next question; session, strip of pictures, drawing and its cost."""
        if session.picture is None:
            raise toast_error("There is no picture yet. Choose one, then add others.")
        if len(session.pictures) >= MAX_PICTURES:
            raise toast_error(f"There are {MAX_PICTURES} pictures already. Clear the conversation first.")
        if self.runs.is_answering(request.session_hash):  # its next step would replace the session
            raise toast_error("Wait for the answer or press Stop, then add the picture.")
        if not isinstance(upload, Mapping):
            raise toast_error("The picture is no uploaded file. Choose one, or reload the page.")
        with errors_as_toasts():
            session = session.with_picture(open_upload(upload))
        return session, self.show_strip(session), *self.draw(session, *values)

    def show_strip(self, session: Session) -> str:
        """Formats the pictures of the conversation, if there are several."""
        return views.picture_strip(session.pictures, len(session.pictures) - len(session.pending))

    @property
    def views(self) -> tuple[str, ...]:
        """What can be drawn."""
        return views.EXPLAINED_VIEWS if self.backend.explains else views.VIEWS

    def set_view(self, session: Session, view: Any, *controls: Any) -> tuple[str, str | None, str]:
        """Chooses what is drawn; the view, the drawing, and its cost."""
        drawn = self.draw(session, *controls, view)
        if view == views.ANSWER and session.last_answer is None:
            gr.Info(views.NO_ANSWER)
        return view, *drawn

    def draw_answer(self, session: Session, *values: Any) -> tuple[Any, Any]:
        """Draws the picture again after an answer, if what it depended on is shown; the drawing, and its cost."""
        return self.draw(session, *values) if values[-1] == views.ANSWER else (gr.skip(), gr.skip())

    def draw(self, session: Session, *values: Any) -> tuple[str | None, str]:
        """Draws the last picture, and describes its cost; no model runs, unless an answer is explained.

        Args:
            session: The visitor's session.
            values: Those of the controls, and one of `views` unless it is the lines.
        """
        controls, (view, *_) = values[:CONTROLS], (*values[CONTROLS:], views.LINES)
        with errors_as_toasts():
            settings = Controls.read(controls, self.backend)
            if view not in self.views:
                raise ValueError(f"the view is {describe(view)}; it must be one of {', '.join(self.views)}")
        if session.picture is None:
            return None, views.NO_PICTURE
        picture, explained = session.pictures[-1], None
        with errors_as_toasts():
            prepared = self.backend.prepare(picture, settings.options(self.backend))
            if view == views.ANSWER and session.last_answer is not None:
                explained = self._explain(session, settings)
            if explained is None:
                shown = views.draw(prepared, self.backend.pixels, picture=picture, view=view)
                about = leaf_map(prepared.leaves, picture.size)
            else:
                *_, shown = explained.draw([views.enlarge(each) for each in session.asked_pictures])
                part = explained.images[-1]
                picture = session.asked_pictures[-1]
                about = leaf_map(part.leaves, picture.size, part.weights, part.frame)
            drawing = save_drawing(shown)
        meter = views.token_meter(prepared, picture, self.backend.native_tokens)
        return drawing, about + meter + accuracy_chart(self.curve, prepared.tokens)

    def _explain(self, session: Session, settings: Controls) -> Explanation:
        """Computes what the last answer depended on, under the current settings of the picture."""
        last, before = session.exchanges[-1], replace(session.without_last(), pending=session.exchanges[-1].pictures)
        query = Query(before.turns(last.question), settings.sampling(), settings.options(self.backend), settings.model)
        return self.backend.explain(query, last.answer)
