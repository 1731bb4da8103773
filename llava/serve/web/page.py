"""The demo's page: its cards, connected with the handlers of their events."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from llava.serve.web import layout
from llava.serve.web.blocks import PageBlocks
from llava.serve.web.controls import CLIP, ranges_of
from llava.serve.web.handlers import Demo
from llava.serve.web.layout import PRIVATE, TITLE, ConversationCard, PageText, PictureCard, ViewCard
from llava.serve.web.session import Session
from llava.serve.web.toasts import toast_error
from llava.serve.web.views import LINES

MODEL_EVENTS = "model"  # events that run the model share one concurrency limit


@dataclass(frozen=True)
class Parts:
    """Components that events read and write."""

    session: gr.State
    drawn: gr.State
    """The chosen view; not among the controls, which programs send with each call."""
    picture: PictureCard
    view: ViewCard
    talk: ConversationCard
    controls: Sequence[Any]
    """The controls, in the order of `Controls`."""
    panel: gr.Column
    sides: Sequence[gr.HTML]
    """The comparison: its question, then the head and body of each side."""


def build_page(demo: Demo, text: PageText | None = None, choose_model: bool = False) -> gr.Blocks:
    """Lays out the page and connects its events to the handlers.

    Args:
        demo: The handlers.
        text: Texts and examples.
        choose_model: Whether visitors choose a model.
    """
    text = text or PageText()
    with PageBlocks(title=TITLE, analytics_enabled=False, delete_cache=(3600, 3600), fill_width=True) as page:
        session, drawn = gr.State(Session()), gr.State(LINES)
        model = layout.header(text, choose_model)
        with gr.Row(elem_id="stage"):  # in the order of the keyboard; the style sheet places the cards
            with gr.Column(elem_id="talk-column"):
                with gr.Column(elem_id="talk-card", elem_classes="card"):
                    talk = layout.talk_card(demo, text)
                with gr.Column(elem_id="compare-card", elem_classes="card", visible=False) as panel:
                    sides = layout.compare_card()
            with gr.Column(elem_id="picture-card", elem_classes="card"):
                picture = layout.picture_card(text)
            with gr.Column(elem_id="settings-card", elem_classes="card"):
                sampling = layout.settings_card(ranges_of(demo.backend))
            with gr.Column(elem_id="sees-card", elem_classes="card"):
                view = layout.view_card(demo, text)
        controls = [*view.quadtree, *sampling, model]
        parts = Parts(session, drawn, picture, view, talk, controls, panel, sides)
        _connect_questions(demo, parts)
        _connect_pictures(demo, parts, page)
        _connect_views(demo, parts)
        if demo.feedback is not None:
            talk.chat.like(demo.vote, [session, model], None, show_progress="hidden", preprocess=False, **PRIVATE)
        if choose_model:
            looks = [page.load, model.focus]  # no model may be served at first
            gr.on(looks, demo.models, model, model, show_progress="hidden", preprocess=False, **PRIVATE)
        page.unload(demo.leave)
    demo.holders.drop.append(lambda visitor: page.state_holder.session_data.pop(visitor, None))  # their session
    return page


def _connect_questions(demo: Demo, parts: Parts) -> None:
    """Connects the events that make the model answer, and those that end answers."""
    # Not preprocessed, here and below: the handlers check the clients' values and report what is wrong.
    hidden: dict[str, Any] = {"show_progress": "hidden", "preprocess": False}
    # By default a press counts only once the button's last event has ended; here it ends what runs, see `Runs`.
    waiting: dict[str, Any] = {"concurrency_id": MODEL_EVENTS, "trigger_mode": "multiple", **hidden}
    talk, session, press = parts.talk, parts.session, parts.talk.press
    buttons, question = talk.buttons, talk.question
    conversation = [session, talk.chat, talk.spent]
    asked = [session, press, question, *parts.controls]
    _connect_presses(parts)
    triggers = [buttons["Ask"].click, question.submit]
    asking = gr.on(triggers, demo.ask, asked, conversation, js=_send("ask"), api_name="ask", **waiting)
    suggested = _connect_suggestions(demo, parts, asked, conversation, waiting)
    again = buttons["Regenerate"].click(
        demo.regenerate,
        [session, press, *parts.controls],
        conversation,
        js=_send("regenerate"),
        api_name="regenerate",
        **waiting,
    )
    comparing = buttons["Compare"].click(
        demo.compare, asked, [parts.panel, *parts.sides], js=_send("compare"), api_name="compare", **waiting
    )
    answering = [asking, *suggested, again, comparing]
    _connect_ends(demo, parts, answering)
    values, shown = [session, *parts.controls, parts.drawn], [parts.view.image, parts.view.cost]
    for event in (asking, *suggested):  # pictures that have been asked about cannot be removed
        event.then(demo.show_strip, session, talk.strip, trigger_mode="always_last", **hidden, **PRIVATE)
    if demo.backend.explains:
        for event in (asking, *suggested, again):
            event.then(demo.draw_answer, values, shown, trigger_mode="always_last", **hidden, **PRIVATE)
    cleared = gr.on(
        [buttons["Clear"].click, talk.chat.clear],
        demo.clear,
        [session, press],
        [*conversation, parts.panel],
        js=_send("clear"),
        api_name="clear",
        trigger_mode="multiple",
    )
    undone = buttons["Undo"].click(
        demo.undo,
        [session, press, question],
        [*conversation, question],
        js=_send("undo"),
        trigger_mode="multiple",
        **PRIVATE,
    )
    _connect_edit("clear", cleared)
    _connect_edit("undo", undone)
    for event in (cleared, undone):  # another picture may be the last one, and another answer
        event.then(demo.show_strip, session, talk.strip, trigger_mode="always_last", **hidden, **PRIVATE)
        event.then(demo.redraw, values, shown, trigger_mode="always_last", **hidden, **PRIVATE)


def _connect_suggestions(
    demo: Demo, parts: Parts, asked: Sequence[Any], conversation: Sequence[Any], waiting: dict[str, Any]
) -> list[Any]:
    """Connects the suggested questions, which leave the question box alone; gives the events that ask them."""
    chosen = gr.State("")
    example = parts.talk.chat.example_select(example_text, None, chosen, show_progress="hidden", **PRIVATE)
    others = [chosen if each is parts.talk.question else each for each in asked]
    suggested = [example.then(demo.ask, others, conversation, js=_send("suggest"), **PRIVATE, **waiting)]
    for button in parts.talk.suggestions:
        suggest = f"(...inputs) => window.llavaPage.suggest(inputs, {json.dumps(button.value)})"
        suggested.append(button.click(demo.ask, asked, conversation, js=suggest, **PRIVATE, **waiting))
    return suggested


def _tools(talk: ConversationCard) -> list[Any]:
    """Lists what is enabled while it has something to do; `page.js` counts running answers."""
    return [talk.buttons[name] for name in ("Stop", "Regenerate", "Undo")]


def _send(name: str) -> str:
    """Builds the browser's function that numbers a press in an event's second input, see `page.js`."""
    return f"(...inputs) => window.llavaPage.send('{name}', inputs)"


def _wait(name: str) -> str:
    """Builds the browser's function that lets an event wait for edits of the conversation before it."""
    return f"(...inputs) => window.llavaPage.wait('{name}', inputs)"


def _connect_presses(parts: Parts) -> None:
    """Counts presses. Connected before their other events, since a browser runs a click's events in order."""
    talk = parts.talk
    pressed = {name.lower(): [button.click] for name, button in talk.buttons.items()}
    pressed["ask"].append(talk.question.submit)
    pressed["clear"].append(talk.chat.clear)
    pressed["suggest"] = [talk.chat.example_select, *(button.click for button in talk.suggestions)]
    for name, triggers in pressed.items():
        gr.on(triggers, None, None, _tools(talk), js=f"() => window.llavaPage.press('{name}')")
    talk.update.click(None, None, _tools(talk), js="() => window.llavaPage.tools()")


def _connect_edit(name: str, event: Any) -> None:
    """Reports the end of an edit of the conversation, for which later presses wait, or of a drawing."""
    for ended in (event.then, event.failure):  # a browser runs one of the two
        ended(None, None, None, js=f"() => window.llavaPage.endEdit('{name}')")


def _connect_ends(demo: Demo, parts: Parts, answering: Sequence[Any]) -> None:
    """Counts the answers that have ended, and looks whether there is a conversation."""
    talk, tools = parts.talk, _tools(parts.talk)
    for event in answering:
        event.then(None, None, tools, js="() => window.llavaPage.end()")  # a browser runs this or the next
        event.failure(None, talk.chat, tools, js="(chat) => window.llavaPage.fail(chat)")
    stopped: dict[str, Any] = {"queue": False, "trigger_mode": "multiple", **PRIVATE}
    for name in ("Stop", "Clear", "Undo"):  # the last two are sent themselves once these have ended
        triggers = [talk.buttons[name].click, *([talk.chat.clear] if name == "Clear" else [])]
        number = f"() => window.llavaPage.numberStop('{name.lower()}')"
        gr.on(triggers, demo.stop, talk.press, None, js=number, **stopped)
    talk.chat.change(None, talk.chat, tools, js="(chat) => window.llavaPage.show(chat)")


def _connect_pictures(demo: Demo, parts: Parts, page: gr.Blocks) -> None:
    """Connects the events of pictures."""
    hidden: dict[str, Any] = {"show_progress": "hidden", "preprocess": False}
    card, view, talk = parts.picture, parts.view, parts.talk
    values = [*parts.controls, parts.drawn]
    card.restore.click(None, None, card.image, js="() => window.llavaPage.keptPicture()")
    reason = "() => window.llavaPage.takeReason()"
    card.refuse.click(demo.refuse_picture, talk.press, None, js=reason, trigger_mode="multiple", **PRIVATE, **hidden)
    opened = gr.on(
        [page.load, card.image.change],
        demo.open_picture,
        [parts.session, talk.press, card.image, *values],
        [card.image, parts.session, view.image, view.cost, talk.chat, talk.spent, parts.panel],
        api_name="open_picture",
        js="(...inputs) => window.llavaPage.open(inputs)",
        trigger_mode="always_last",  # a change during another is not lost
        show_progress_on=talk.press,  # the picture's own status tracker would be replaced while it waits, see frames.js
        **hidden,
    )
    _connect_edit("open", opened)
    opened.then(demo.show_strip, parts.session, talk.strip, **PRIVATE)
    strip = [parts.session, talk.strip, view.image, view.cost]
    hidden["trigger_mode"] = "multiple"
    added = talk.add.upload(
        demo.add_pictures, [parts.session, talk.add, *values], strip, js=_wait("add"), **PRIVATE, **hidden
    )
    removed = talk.remove.click(
        demo.remove_picture,
        [parts.session, talk.press, *values],
        strip,
        js="(...inputs) => window.llavaPage.remove(inputs)",
        **PRIVATE,
        **hidden,
    )
    _connect_edit("add", added)
    _connect_edit("remove", removed)


def _connect_views(demo: Demo, parts: Parts) -> None:
    """Connects the events that draw the picture again: the view, and the quadtree's controls."""
    hidden: dict[str, Any] = {"show_progress": "hidden", "preprocess": False}
    mode, alpha, budget = parts.controls[:3]
    view = parts.view
    looked = gr.on(
        [mode.change, alpha.change, budget.change],
        demo.redraw,
        [parts.session, *parts.controls, parts.drawn],
        [view.image, view.cost],
        api_name="look",
        js=_wait("look"),
        trigger_mode="always_last",
        **hidden,
    )
    chosen = view.choice.change(
        demo.set_view,
        [parts.session, view.choice, *parts.controls],
        [parts.drawn, view.image, view.cost],
        js=_wait("view"),
        trigger_mode="always_last",
        **PRIVATE,
        **hidden,
    )
    _connect_edit("look", looked)
    _connect_edit("view", chosen)
    mode.change(enable_sliders, mode, [alpha, budget], **PRIVATE, **hidden)


def example_text(chosen: gr.EventData) -> str:
    """Reads the text of the example question that was clicked."""
    try:
        return str(chosen._data["value"]["text"])  # gr.SelectData raises where a client sends something else
    except (LookupError, TypeError):
        raise toast_error("This is not an example question. Reload the page.") from None


def enable_sliders(mode: str) -> list[Any]:
    """Enables the quadtree's sliders if the quadtree is in use, else disables them."""
    return [gr.update(interactive=mode != CLIP)] * 2
