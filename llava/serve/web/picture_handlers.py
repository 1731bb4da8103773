"""Event handlers of pictures: they open them, add them to a conversation and draw what the model sees."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import gradio as gr

from llava.images import ImageError
from llava.serve.engine.explain import Explanation
from llava.serve.http.failures import RequestError, explain
from llava.serve.web import views
from llava.serve.web.backend import Backend, Query
from llava.serve.web.chart import Curve, accuracy_chart
from llava.serve.web.controls import CONTROLS, Controls, describe, name_controls, read_press
from llava.serve.web.leaf_map import leaf_map
from llava.serve.web.runs import Runs
from llava.serve.web.session import MAX_PICTURES, Session, file_name, open_upload, save_drawing
from llava.serve.web.toasts import MAX_TEXT, errors_as_toasts, toast_error, warn, with_advice
from llava.serve.web.visitors import Latest, PictureHolders

MAX_PATH = 4096  # characters of an uploaded file's path that are compared


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
        self.holders = PictureHolders()
        self._opened: Latest[str | None, str | None] = Latest()  # the file that each opened last, or is opening
        self._refused: Latest[str | None, str | None] = Latest()  # the file of each that was refused last
        self.holders.drop.append(lambda visitor: self._opened.pop(visitor, None))  # who may open it again

    @name_controls
    async def open_picture(
        self, request: gr.Request, session: Session, press: Any, upload: Mapping[str, Any] | None, *values: Any
    ) -> tuple[Any, ...]:
        """Starts a new conversation about an uploaded picture, given as Gradio's description of a file, or None.

        Ends running answers about the picture before. A file that cannot be used leaves picture and conversation.
        Returns the picture component's value, the session, the drawing, its cost, the chat, the last answer's cost and
        the comparison. A browser may report the same change more than once, even while the picture is being opened:
        the second report must not clear a conversation that has started meanwhile.
        """
        if not (upload is None or isinstance(upload, Mapping)):
            raise toast_error("The picture is not an uploaded file. Choose one, or reload the page.")
        source = str(upload.get("path"))[:MAX_PATH] if upload else None
        before = self._opened.get(request.session_hash, session.source)
        refused = self._refused.pop(request.session_hash, None)
        if source == before:
            return (gr.skip(),) * 7
        self._opened[request.session_hash] = source
        picture, shown = None, gr.skip()
        try:
            try:
                picture = await asyncio.to_thread(open_upload, upload) if upload else None
            except ImageError as error:
                if source != refused:
                    warn(f"This picture cannot be used: {with_advice(explain(error))}")
                if session.picture is not None:
                    self._opened[request.session_hash], self._refused[request.session_hash] = before, source
                    return (session.source, *(gr.skip(),) * 6)
                shown = None
            await self.runs.stop(request.session_hash, press=read_press(press), replaced=True)
            session = Session(picture, source)
            drawn = await asyncio.to_thread(self.draw, session, *values)
            self.note_visit(request, session)
            return shown, session, *drawn, [], views.NO_COST, gr.update(visible=False)
        except BaseException:
            self._opened[request.session_hash] = before  # nothing was opened: the same file may be tried again
            raise

    def refuse_picture(self, reason: Any) -> None:
        """Shows a visitor why their browser does not upload a file."""
        if not isinstance(reason, str):
            raise toast_error("This is not a reason to refuse a picture. Reload the page.")
        warn(reason[:MAX_TEXT])

    def note_visit(self, request: gr.Request, session: Session) -> None:
        """Notes that a visitor who has a picture is not idle."""
        if session.picture is not None:
            self.holders.hold(request.session_hash)

    def add_pictures(self, request: gr.Request, session: Session, uploads: Any, *values: Any) -> tuple[Any, ...]:
        """Adds uploaded pictures to the next question; session, strip of pictures, drawing and its cost.

        Of several files those that are not pictures are left out, and those that are too many; a warning says which.
        """
        if session.picture is None:
            raise toast_error("There is no picture yet. Choose one, then add others.")
        self.note_visit(request, session)
        room = MAX_PICTURES - len(session.pictures)
        if room <= 0:
            raise toast_error(f"There are {MAX_PICTURES} pictures already. Remove one, or clear the conversation.")
        self._require_no_answer(request)
        files = uploads if isinstance(uploads, list) else [uploads]
        if not files or not all(isinstance(file, Mapping) for file in files):
            raise toast_error("The picture is not an uploaded file. Choose one, or reload the page.")
        refused = []
        for file in files[:room]:
            try:
                session = session.with_picture(open_upload(file))
            except (ImageError, RequestError) as error:
                refused.append(f"{file_name(file)} cannot be used: {with_advice(explain(error))}")
        self._require_no_answer(request)  # that of a question which was asked meanwhile
        for text in refused:
            warn(text)
        if len(files) > room:
            text = f"A conversation takes {MAX_PICTURES} pictures: the first {room} of {len(files)} files were taken."
            warn(text)
        return session, self.show_strip(session), *self.draw(session, *values)

    def remove_picture(self, request: gr.Request, session: Session, chosen: Any, *values: Any) -> tuple[Any, ...]:
        """Takes back a picture that no question has been asked about; the same outputs as those of `add_pictures`.

        Args:
            request: Says who the visitor is.
            session: Their session.
            chosen: [number of the picture, from 1; number of pictures that the browser shows].
            values: See `draw`.
        """
        if not (isinstance(chosen, list) and len(chosen) == 2 and all(type(each) is int for each in chosen)):
            raise toast_error("This is not a picture of the conversation. Reload the page.")
        number, shown = chosen
        if shown != len(session.pictures):  # pressed twice
            return (gr.skip(),) * 4
        if not len(session.asked_pictures) < number <= shown:
            raise toast_error("The model has been asked about this picture. Clear the conversation to remove it.")
        self._require_no_answer(request)
        session = session.without_picture(number)
        return session, self.show_strip(session), *self.draw(session, *values)

    def _require_no_answer(self, request: gr.Request) -> None:
        """Raises an error while an answer is generated, since its next step would replace the session."""
        if self.runs.is_answering(request.session_hash):
            raise toast_error("Wait for the answer or press Stop, then change the pictures.")

    def show_strip(self, session: Session) -> str:
        """Formats the pictures of the conversation, if there are several."""
        explains = self.backend.explains and session.last_answer is not None
        return views.picture_strip(session.pictures, len(session.pictures) - len(session.pending), explains)

    @property
    def views(self) -> tuple[str, ...]:
        """What can be drawn."""
        return views.EXPLAINED_VIEWS if self.backend.explains else views.VIEWS

    def set_view(self, request: gr.Request, session: Session, view: Any, *controls: Any) -> tuple[str, Any, Any]:
        """Chooses what is drawn; the view, the drawing, and its cost."""
        drawn = self.redraw(request, session, *controls, view)
        if view == views.ANSWER and session.last_answer is None:
            gr.Info(views.NO_ANSWER)
        return view, *drawn

    def draw_answer(self, request: gr.Request, session: Session, *values: Any) -> tuple[Any, Any]:
        """Draws the picture again after an answer, if what it depended on is shown; the drawing, and its cost."""
        return self.redraw(request, session, *values) if values[-1] == views.ANSWER else (gr.skip(), gr.skip())

    @name_controls
    def redraw(self, request: gr.Request, session: Session, *values: Any) -> tuple[Any, Any]:
        """Draws the session's picture, see `draw`; changes nothing if the visitor has opened another one meanwhile."""
        drawn = self.draw(session, *values)
        is_shown = self._opened.get(request.session_hash, session.source) == session.source
        return drawn if is_shown else (gr.skip(), gr.skip())

    def draw(self, session: Session, *values: Any) -> tuple[str | None, str]:
        """Draws the last picture, and describes its cost; no model runs, unless an answer is explained.

        What an answer depended on is drawn as the pictures were cut for that answer, whatever the controls say now.

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
        explains, options = view == views.ANSWER and session.last_answer is not None, settings.options(self.backend)
        is_outdated = explains and session.exchanges[-1].options != options
        with errors_as_toasts():
            if explains:
                picture, options = session.asked_pictures[-1], session.exchanges[-1].options
                prepared = self.backend.prepare(picture, options)
                explained = self._explain(session, settings)
                *_, shown = explained.draw([views.enlarge(each) for each in session.asked_pictures])
                part = explained.images[-1]
                about = leaf_map(part.leaves, picture.size, part.weights, part.frame)
            else:
                picture = session.pictures[-1]
                prepared = self.backend.prepare(picture, options)
                shown = views.draw(prepared, self.backend.pixels, picture=picture, view=view)
                about = leaf_map(prepared.leaves, picture.size)
            drawing = save_drawing(shown)
        alt = views.ALTS[views.PICTURE if view == views.ANSWER and not explains else view]
        meter = views.token_meter(prepared, picture, self.backend.native_tokens, len(session.pictures) > 1, alt)
        is_measured = self.curve is not None and self.curve.covers(prepared.tokens, options)
        when = "for this answer" if explains else "now"
        chart = accuracy_chart(self.curve, prepared.tokens if is_measured else None, when)
        return drawing, about + meter + views.OUTDATED * is_outdated + chart

    def _explain(self, session: Session, settings: Controls) -> Explanation:
        """Computes what the last answer depended on, with the pictures cut as they were for it."""
        last, before = session.exchanges[-1], replace(session.without_last(), pending=session.exchanges[-1].pictures)
        query = Query(before.turns(last.question), settings.sampling(), last.options, settings.model)
        return self.backend.explain(query, last.answer)
