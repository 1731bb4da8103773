"""The layout of the demo's page, and the handlers of its events."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr
from gradio.helpers import Examples

from llava.serve.engine.params import Sampling
from llava.serve.web.blocks import PageBlocks
from llava.serve.web.controls import CLIP, MAX_QUESTION, MODES, QLIP, QUESTION, Range, ranges_of
from llava.serve.web.handlers import Demo
from llava.serve.web.session import Session
from llava.serve.web.toasts import toast_error
from llava.serve.web.views import NO_COST, NO_PICTURE

TITLE = "LLaVA with QLIP"
MODEL_EVENTS = "model"  # events that run the model share one concurrency limit
PICTURE_HEIGHT, VIEW_HEIGHT = 300, 380  # pixels
PRIVATE: dict[str, Any] = {"api_visibility": "private"}  # not part of the API
SWITCH_APPEARANCE = "() => { document.body.classList.toggle('dark'); }"

# The chatbot's copy buttons copy the escaped message; this unescapes it.
COPY_AS_SHOWN = """() => {
    const write = navigator.clipboard?.writeText.bind(navigator.clipboard);
    const shown = (html) => new DOMParser().parseFromString("<pre>" + html, "text/html").body.textContent;
    if (write) navigator.clipboard.writeText = (text) => write(shown(text));
}"""


@dataclass(frozen=True)
class PageText:
    """Texts and examples of the page."""

    notice: str = ""
    """Text below the title."""
    examples: Sequence[str] = ()
    """Paths of example pictures."""
    questions: Sequence[str] = ("What is in the picture?", "Describe the picture in detail.")
    """Example questions."""
    heading: bool = True
    """Whether the page has a title; False for embedding in another page."""


@dataclass(frozen=True)
class Parts:
    """Components that events read and write."""

    session: gr.State
    picture: gr.Image
    examples: Examples | None
    seen: gr.Image
    cost: gr.HTML
    chat: gr.Chatbot
    spent: gr.HTML
    question: gr.Textbox
    buttons: Mapping[str, gr.Button]
    controls: Sequence[Any]
    """In the order of `Controls`."""
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
        session = gr.State(Session())
        model = _header(text, choose_model)
        with gr.Row(elem_id="stage"):
            with gr.Column(elem_id="picture-card", elem_classes="card"):
                picture, examples = _picture_card(text)
            with gr.Column(elem_id="settings-card", elem_classes="card"):
                sampling = _settings_card(ranges_of(demo.backend))
            with gr.Column(elem_id="sees-card", elem_classes="card"):
                seen, cost, quadtree = _view_card(demo)
            with gr.Column(elem_id="talk-card", elem_classes="card"):
                chat, spent, question, buttons = _talk_card(demo, text)
            with gr.Column(elem_id="compare-card", elem_classes="card", visible=False) as panel:
                sides = _compare_card()
        controls = [*quadtree, *sampling, model]
        parts = Parts(session, picture, examples, seen, cost, chat, spent, question, buttons, controls, panel, sides)
        answering = _connect_questions(demo, parts)
        _connect_pictures(demo, parts, page, answering)
        if choose_model:
            page.load(demo.models, None, model, show_progress="hidden", **PRIVATE)
        page.load(None, js=COPY_AS_SHOWN)
        page.unload(demo.leave)
    return page


def _connect_questions(demo: Demo, parts: Parts) -> list[Any]:
    """Connects the events that make the model answer and returns them; Stop cancels them."""
    # Not preprocessed, here and below: the handlers check the clients' values and report what is wrong.
    waiting: dict[str, Any] = {"concurrency_id": MODEL_EVENTS, "show_progress": "hidden", "preprocess": False}
    buttons, question, session = parts.buttons, parts.question, parts.session
    talk = [session, parts.chat, parts.spent]
    asked, answered = [session, question, *parts.controls], [*talk, question]
    asking = gr.on([buttons["Ask"].click, question.submit], demo.ask, asked, answered, api_name="ask", **waiting)
    chosen = parts.chat.example_select(example_text, None, question, show_progress="hidden", **PRIVATE)
    suggested = chosen.then(demo.ask, asked, answered, **PRIVATE, **waiting)
    again = buttons["Regenerate"].click(
        demo.regenerate, [session, *parts.controls], talk, api_name="regenerate", **waiting
    )
    comparing = buttons["Compare"].click(
        demo.compare, asked, [parts.panel, *parts.sides], api_name="compare", scroll_to_output=True, **waiting
    )
    answering = [asking, suggested, again, comparing]
    buttons["Stop"].click(None, cancels=answering)
    clearing = [buttons["Clear"].click, parts.chat.clear]
    gr.on(clearing, demo.clear, session, [*talk, parts.panel], api_name="clear", cancels=answering)
    return answering


def _connect_pictures(demo: Demo, parts: Parts, page: gr.Blocks, answering: Sequence[Any]) -> None:
    """Connects the events of the picture and the quadtree's controls; a new picture cancels running answers."""
    hidden: dict[str, Any] = {"show_progress": "hidden", "preprocess": False}
    gr.on(
        [page.load, parts.picture.change],
        demo.open_picture,
        [parts.session, parts.picture, *parts.controls],
        [parts.picture, parts.session, parts.seen, parts.cost, parts.chat, parts.spent, parts.panel],
        api_name="open_picture",
        trigger_mode="always_last",  # a change during another is not lost
        **hidden,
    )
    # Not on `change`, which a browser may report again after the next question has been asked.
    chosen = [parts.picture.input] if parts.examples is None else [parts.picture.input, parts.examples.dataset.click]
    gr.on(chosen, None, cancels=answering)
    mode, alpha, budget = parts.controls[:3]
    gr.on(
        [mode.change, alpha.change, budget.change],
        demo.draw,
        [parts.session, *parts.controls],
        [parts.seen, parts.cost],
        api_name="look",
        trigger_mode="always_last",
        **hidden,
    )
    mode.change(enable_sliders, mode, [alpha, budget], **PRIVATE, **hidden)


def example_text(chosen: gr.EventData) -> str:
    """Reads the text of the example question that was clicked."""
    try:
        return str(chosen._data["value"]["text"])  # gr.SelectData raises where a client sends something else
    except (LookupError, TypeError):
        raise toast_error("This is no example question. Reload the page.") from None


def enable_sliders(mode: str) -> list[Any]:
    """Enables the quadtree's sliders if the quadtree is in use, else disables them."""
    return [gr.update(interactive=mode != CLIP)] * 2


def _header(text: PageText, choose_model: bool) -> gr.Dropdown:
    with gr.Row(elem_id="head", visible=text.heading or choose_model):
        gr.HTML(f"<h1>{TITLE}</h1><p>{text.notice}</p>", elem_id="title", visible=text.heading)
        with gr.Row(elem_id="tools"):
            model = gr.Dropdown([], label="Model", elem_id="model", container=False, visible=choose_model)
            appearance = gr.Button("Light / dark", size="sm", elem_id="appearance", min_width=0)
    appearance.click(None, js=SWITCH_APPEARANCE)
    return model


def _picture_card(text: PageText) -> tuple[gr.Image, Examples | None]:
    gr.HTML("<h2>Picture</h2>")
    picture = gr.Image(
        text.examples[0] if text.examples else None,
        label="Picture",
        show_label=False,
        sources=["upload", "webcam", "clipboard"],
        height=PICTURE_HEIGHT,
        elem_id="picture",
        placeholder="Drop a picture here, paste one, or choose a file",
    )
    if not text.examples:
        return picture, None
    rows = [[path] for path in text.examples]
    return picture, gr.Examples(rows, picture, label="Or try one of these", elem_id="examples", **PRIVATE)


def _slider(range: Range, value: float, step: float, **options: Any) -> gr.Slider:
    return gr.Slider(range.low, range.high, value, step=step, label=range.label, **options)


def _settings_card(ranges: Mapping[str, Range]) -> list[gr.Slider]:
    gr.HTML("<h2>Answer</h2>")
    return [
        _slider(ranges["temperature"], Sampling.temperature, 0.05, info="0 takes the likeliest word."),
        _slider(ranges["top_p"], 1, 0.05, info="Share of the likeliest words to draw from."),
        _slider(ranges["max_new_tokens"], Sampling.max_new_tokens, 1),
    ]


def _view_card(demo: Demo) -> tuple[gr.Image, gr.HTML, list[Any]]:
    settings, most = demo.backend.defaults, demo.backend.max_tokens
    both = settings is not None
    gr.HTML("<h2>What the model sees</h2>")
    seen = gr.Image(
        label="What the model sees",
        show_label=False,
        interactive=False,
        height=VIEW_HEIGHT,
        buttons=["fullscreen", "download"],
        elem_id="seen",
        alt_text="The picture as the model sees it, cut into its visual tokens",
    )
    cost = gr.HTML(NO_PICTURE, elem_id="meter")
    quadtree = QUESTION if settings and settings.budget == "question" else QLIP
    start = quadtree if both and demo.backend.quadtree else CLIP
    mode = gr.Radio(MODES, value=start, show_label=False, elem_id="way", visible=both, container=False)
    ranges, shown = ranges_of(demo.backend), {"visible": both}
    threshold = settings.alpha if settings else 0
    alpha = _slider(
        ranges["alpha"], threshold, 0.05, info="0 is the uniform grid; higher cuts less.", elem_id="alpha", **shown
    )
    largest = min(settings.max_tokens or most, most) if settings else most
    budget = _slider(ranges["budget"], largest, 1, info="Most pieces per picture.", elem_id="budget", **shown)
    if demo.backend.note:
        gr.HTML(f"<p>{demo.backend.note}</p>", elem_id="note")
    return seen, cost, [mode, alpha, budget]


def _talk_card(demo: Demo, text: PageText) -> tuple[gr.Chatbot, gr.HTML, gr.Textbox, dict[str, gr.Button]]:
    gr.HTML("<h2>Conversation</h2>")
    chat = gr.Chatbot(
        label="Conversation",
        show_label=False,
        elem_id="chat",
        height=420,
        buttons=["copy"],
        render_markdown=False,  # the text is escaped HTML, shown literally
        latex_delimiters=[],
        placeholder="### What would you like to know?",
        examples=[{"text": question} for question in text.questions],
        feedback_options=None,
    )
    spent = gr.HTML(NO_COST, elem_id="spent")
    with gr.Row(elem_id="composer"):
        question = gr.Textbox(
            label="Question",
            show_label=False,
            placeholder="Ask about the picture",
            lines=1,
            max_lines=5,
            max_length=MAX_QUESTION,
            elem_id="question",
            container=False,
        )
        buttons = {"Ask": gr.Button("Ask", variant="primary", size="md", elem_id="ask")}
    with gr.Row(elem_id="buttons"):
        both = demo.backend.defaults is not None
        buttons["Compare"] = gr.Button("Compare CLIP and QLIP", size="md", elem_id="compare", visible=both)
        for name in ("Stop", "Regenerate", "Clear"):
            buttons[name] = gr.Button(name, size="md", elem_id=name.lower())
    return chat, spent, question, buttons


def _compare_card() -> list[gr.HTML]:
    parts = [gr.HTML(NO_COST, elem_id="compare-question")]
    with gr.Row(elem_id="sides"):
        for name in (CLIP, QLIP):
            with gr.Column(elem_classes="side", elem_id=f"side-{name.lower()}"):
                parts += [gr.HTML(NO_COST), gr.HTML(NO_COST)]
    return parts
