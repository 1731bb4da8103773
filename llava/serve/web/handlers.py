"""The page's event handlers: they take a session and return the next one with what the page shows.

Text from a model or a visitor is escaped where it becomes a message, a toast or HTML: `Session.messages`, `toasts` and
`views`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import gradio as gr
from PIL import Image

from llava.model.vision.prepared_image import PreparedImage
from llava.serve.engine.params import QLIPOptions
from llava.serve.web import views
from llava.serve.web.backend import Backend, Query
from llava.serve.web.chart import Curve
from llava.serve.web.controls import CLIP, MAX_MODEL_NAME, QLIP, Controls, name_controls, read_press, read_question
from llava.serve.web.feedback import FeedbackLog, read_vote
from llava.serve.web.moderation import Moderator
from llava.serve.web.picture_handlers import PictureHandlers
from llava.serve.web.progress import AnswerProgress, Comparison, pace
from llava.serve.web.runs import COMPARISON, TALK, Run, keep_outputs
from llava.serve.web.session import BROKEN_OFF, CUT, STOPPED, WAITING, Messages, Session
from llava.serve.web.toasts import errors_as_toasts, replace_surrogates, toast_error
from llava.serve.web.visitors import Latest


class Demo(PictureHandlers):
    """The event handlers. Several visitors are answered at the same time."""

    def __init__(
        self,
        backend: Backend,
        moderator: Moderator | None = None,
        feedback: FeedbackLog | None = None,
        curve: Curve | None = None,
    ) -> None:
        """
        Args:
            backend: Answers questions and prepares pictures.
            moderator: Checks questions before they are asked; None checks nothing.
            feedback: Where visitors' votes are written; None takes none.
            curve: What is known of the model's accuracy by tokens; None shows no chart.
        """
        super().__init__(backend, curve)
        self.moderator = moderator
        self.feedback = feedback
        self._voted: Latest[str | None, int] = Latest()  # the hash of each visitor's last vote

    @keep_outputs(3)
    @name_controls
    async def ask(
        self, request: gr.Request, session: Session, press: Any, question: Any, *controls: Any
    ) -> AsyncGenerator[tuple[Session, Messages, str], None]:
        """Streams the answer; yields session, chat and cost line.

        The browser empties the question box once the chat shows the question, and puts it back if the chat loses it:
        the model has failed before its first text then.
        """
        with errors_as_toasts():
            text = read_question(question)
        if not text and self.runs.is_answering(request.session_hash):
            return  # Enter was pressed twice
        self.note_visit(request, session)
        async with self.runs.start(request.session_hash, TALK, read_press(press)) as run:
            before = run.session or session
            if run.session is not None and before.last_question == text:  # the same again, before its answer was done
                before = before.without_last()
            async with aclosing(run.until_stopped(self._converse(before, before, text, controls))) as steps:
                async for step in steps:
                    run.session = step[0]
                    yield step
            if (last := self._end_talk(run)) is not None:
                yield last

    @keep_outputs(3)
    @name_controls
    async def regenerate(
        self, request: gr.Request, session: Session, press: Any, *controls: Any
    ) -> AsyncGenerator[tuple[Session, Messages, str], None]:
        """Asks the last question again with the current controls; the old answer stays until the new one starts."""
        self.note_visit(request, session)
        async with self.runs.start(request.session_hash, TALK, read_press(press)) as run:
            if run.is_stopped:
                return
            before = run.session or session
            if not before.exchanges:
                raise toast_error("There is no answer to regenerate. Ask something first.")
            asked = self._converse(before, before.without_last(), before.last_question, controls)
            async with aclosing(run.until_stopped(asked)) as steps:
                async for step in steps:
                    run.session = step[0]
                    yield step
            if (last := self._end_talk(run)) is not None:
                yield last

    def _end_talk(self, run: Run) -> tuple[Any, Any, Any] | None:
        """Makes the last step of a run that was stopped: session, chat and cost; None where nothing changes."""
        if run.is_replaced:
            return gr.skip(), [], views.NO_COST
        stopped = run.mark_stopped()
        return None if stopped is None else (stopped, stopped.messages(), gr.skip())

    @keep_outputs(6)
    @name_controls
    async def compare(
        self, request: gr.Request, session: Session, press: Any, question: Any, *controls: Any
    ) -> AsyncGenerator[tuple[Any, ...], None]:
        """Answers one question with CLIP's grid and with the quadtree, outside the conversation.

        Yields the panel, its question, and the head and body of each side. The answers are generated one after the
        other, so that each is timed alone. In the end no side seems to wait, also if it was stopped or has failed.
        """
        self.note_visit(request, session)
        sides = Comparison()
        async with self.runs.start(request.session_hash, COMPARISON, read_press(press)) as run:
            try:
                async with aclosing(run.until_stopped(self._compare(sides, session, question, controls))) as steps:
                    async for step in steps:
                        yield step
            except gr.Error:
                if sides.is_shown:
                    yield self._show_bodies(sides, BROKEN_OFF)
                raise
            if run.is_replaced:
                yield gr.update(visible=False), *(gr.skip(),) * 5
            elif sides.is_shown and run.is_stopped:
                yield self._show_bodies(sides, STOPPED)

    def _show_bodies(self, sides: Comparison, ended: str = "") -> tuple[Any, ...]:
        """Shows the panel, in each step: a browser that gets several at once applies what they change to the first."""
        left, right = sides.bodies(ended)
        return gr.update(visible=True), gr.skip(), gr.skip(), left, gr.skip(), right

    async def _compare(
        self, sides: Comparison, session: Session, question: Any, controls: tuple[Any, ...]
    ) -> AsyncGenerator[tuple[Any, ...], None]:
        with errors_as_toasts():
            text = read_question(question) or session.last_question
            settings = Controls.read(controls, self.backend)
        picture = self._require_pictures(session, text)[-1]
        if self.backend.defaults is None:
            raise toast_error("This model has no quadtree, so there is nothing to compare.")
        queries: dict[str, Query] = {}
        with errors_as_toasts():
            for mode in (CLIP, QLIP if settings.mode == CLIP else settings.mode):
                options = settings.options(self.backend, mode)
                sides.images[mode] = await self._prepare(picture, text if mode == CLIP else None, options)
                turns = session.without_talk().turns(text)
                queries[mode] = Query(turns, settings.sampling(), options, settings.model)
        pixels = self.backend.pixels
        drawn = [asyncio.to_thread(views.compare_head, mode, image, pixels) for mode, image in sides.images.items()]
        heads = await asyncio.gather(*drawn)
        left, right = sides.bodies()
        sides.is_shown = True
        yield gr.update(visible=True), views.compare_question(text), heads[0], left, heads[1], right
        for mode, image in sides.images.items():
            progress = sides.progress[mode] = AnswerProgress(image.tokens)
            async with aclosing(self._answer(queries[mode], progress)) as steps:
                async for _ in steps:
                    yield self._show_bodies(sides)

    async def stop(self, request: gr.Request, press: Any) -> None:
        """Ends the visitor's answers, also those that wait to begin; what has come of them stays."""
        await self.runs.stop(request.session_hash, press=read_press(press))

    async def clear(self, request: gr.Request, session: Session, press: Any) -> tuple[Session, Messages, str, Any]:
        """Clears the conversation and keeps the first picture; ends answers, also those that wait to begin."""
        await self.runs.stop(request.session_hash, press=read_press(press), replaced=True)
        return replace(session, exchanges=(), pending=()), [], views.NO_COST, gr.update(visible=False)

    async def undo(
        self, request: gr.Request, session: Session, press: Any, typed: Any
    ) -> tuple[Session, Messages, str, Any]:
        """Takes the last question back into its box, unless something is typed there; session, chat, cost and box."""
        session = await self.runs.stop(request.session_hash, TALK, press=read_press(press)) or session
        if not session.exchanges:
            raise toast_error("There is no question to take back. Ask something first.")
        before = session.without_last()
        box = gr.skip() if isinstance(typed, str) and typed.strip() else session.last_question
        return before, before.messages(), views.NO_COST, box

    async def vote(self, request: gr.Request, session: Session, model: Any, chosen: gr.EventData) -> None:
        """Writes a visitor's opinion of one answer, and the conversation up to it, to the operator's log.

        The same vote again is not written: Gradio reports a click on *Report* twice.
        """
        if self.feedback is None:
            raise toast_error("This page takes no feedback.")
        with errors_as_toasts():
            kind, message = read_vote(chosen._data)
        if kind is None:  # taken back
            return
        try:
            exchange = session.exchanges[session.exchange_of(message)]
        except LookupError:
            raise toast_error("That answer is no longer in the conversation.") from None
        if not exchange.answer:
            raise toast_error("There is no answer to vote on.")
        vote = hash((kind, message, exchange.texts()))
        if self._voted.get(request.session_hash) == vote:
            return
        self._voted[request.session_hash] = vote
        asked = replace(session, exchanges=session.exchanges[: session.exchange_of(message)])
        name = model if isinstance(model, str) and len(model) <= MAX_MODEL_NAME else ""
        with errors_as_toasts():
            turns = replace(asked, pending=exchange.pictures).turns(exchange.question)
            state = await self.backend.conversation(turns, name)
            state.messages[-1][1] = exchange.answer
            host = request.client.host if request.client else ""
            await asyncio.to_thread(self.feedback.write, kind, name or self.backend.name, state.dict(), host)
        gr.Info("Thank you. The operator can read this conversation now.")

    async def leave(self, request: gr.Request) -> None:
        """Forgets a visitor who has left, and stops their answers, even if no text has come yet."""
        self._opened.pop(request.session_hash, None)
        self._refused.pop(request.session_hash, None)
        self._voted.pop(request.session_hash, None)
        self.holders.forget(request.session_hash)
        await self.runs.forget(request.session_hash)

    async def models(self, chosen: Any = None) -> Any:
        """Lists the currently available models in the dropdown; a chosen one stays chosen, even if it is gone."""
        with errors_as_toasts():
            names = [replace_surrogates(name) for name in await self.backend.models()]
        if chosen and isinstance(chosen, str):
            return gr.skip() if chosen in names else gr.update(choices=[chosen, *names], value=chosen)
        return gr.update(choices=names, value=names[0] if names else None)

    async def _converse(
        self, before: Session, session: Session, question: str, controls: tuple[Any, ...]
    ) -> AsyncGenerator[tuple[Session, Messages, Any], None]:
        """Yields session, messages and cost as the answer grows, once the request is accepted.

        Args:
            before: The session to return to if the model fails before its first text.
            session: The session to which the exchange is added.
            question: The stripped question.
            controls: Values of the controls, from the client.
        """
        with errors_as_toasts():
            settings = Controls.read(controls, self.backend)
        pictures = self._require_pictures(session, question)
        with errors_as_toasts():
            options = settings.options(self.backend)
            image = await self._prepare(pictures[0], question, options)
            others = [await self._prepare(picture, None, options) for picture in pictures[1:]]
            query = Query(session.turns(question), settings.sampling(), options, settings.model)
        progress, is_accepted = AnswerProgress(image.tokens + sum(other.tokens for other in others)), False
        try:
            async with aclosing(self._answer(query, progress)) as steps:
                async for _ in steps:
                    text, is_last = progress.text.strip(), progress.cost.total is not None
                    mark = "" if text or is_last else WAITING
                    answered = session.with_answer(question, text, options, CUT if progress.is_cut else mark)
                    yield answered, answered.messages(), views.cost_line(progress.cost)
                    is_accepted = True
        except gr.Error:
            if is_accepted and not progress.text.strip():
                yield before, before.messages(), views.NO_COST
            elif progress.text.strip():
                answered = session.with_answer(question, progress.text.strip(), options, BROKEN_OFF)
                yield answered, answered.messages(), gr.skip()
            raise
        if not progress.text.strip():
            gr.Info("The model had nothing to say. Ask in other words.")

    def _require_pictures(self, session: Session, question: str) -> tuple[Image.Image, ...]:
        if session.picture is None:
            raise toast_error("There is no picture yet. Choose one, then ask.")
        if not question:
            raise toast_error("The question is empty. Type one, then press Ask.")
        return session.pictures

    async def _prepare(self, picture: Image.Image, question: str | None, options: QLIPOptions) -> PreparedImage:
        if self.moderator is not None and question is not None:
            await self.moderator.check(question)
        return await asyncio.to_thread(self.backend.prepare, picture, options)

    async def _answer(self, query: Query, progress: AnswerProgress) -> AsyncGenerator[AnswerProgress, None]:
        """Adds the answer's pieces to `progress` and yields it as often as a page should show it, also at the end.

        Closing it stops the model.
        """
        with errors_as_toasts():
            async with aclosing(pace(progress.follow(self.backend.ask(query)))) as steps:
                async for step in steps:
                    yield step
