"""The page's cards: the components that each one shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from llava.serve.engine.params import Sampling
from llava.serve.web.controls import CLIP, MODES, QLIP, QUESTION, Range, ranges_of
from llava.serve.web.feedback import DISLIKE, LIKE, REPORT
from llava.serve.web.handlers import Demo
from llava.serve.web.views import ALTS, LINES, NO_COST, NO_PICTURE, OPENING

TITLE = "LLaVA with QLIP"
PAPER = "https://arxiv.org/abs/2505.23004"
ABOUT = (
    "QLIP spends visual tokens where a picture has detail; CLIP cuts every picture into the same grid. "
    f'<a href="{PAPER}" target="_blank" rel="noreferrer">Paper: arXiv 2505.23004</a>'
)
PICTURE_HEIGHT, VIEW_HEIGHT = 300, 340  # pixels
STATUS = '<p role="status"></p>'  # a line that the browser writes
PRIVATE: dict[str, Any] = {"api_visibility": "private"}  # not part of the API


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
class PictureCard:
    """Components of the picture's card. The buttons are hidden: the browser presses them, see `pictures.js`."""

    image: gr.Image
    restore: gr.Button
    """Shows the picture that is open, after Gradio has emptied its component."""
    refuse: gr.Button
    """Says why a file is not uploaded."""


@dataclass(frozen=True)
class ConversationCard:
    """Components of the conversation's card."""

    chat: gr.Chatbot
    spent: gr.HTML
    question: gr.Textbox
    buttons: Mapping[str, gr.Button]
    suggestions: Sequence[gr.Button]
    add: gr.UploadButton
    strip: gr.HTML
    """Shows the pictures of the conversation, if there are several, with buttons to remove those not asked about."""
    remove: gr.Button
    """Hidden: pressed by the browser for the strip's buttons."""
    update: gr.Button
    """Hidden: pressed by the browser where an upload enables or disables buttons."""
    press: gr.Button
    """Hidden: an input that the browser fills with the number of a press. A button is not a parameter of the API."""


@dataclass(frozen=True)
class ViewCard:
    """Components of the card that shows what the model sees."""

    choice: gr.Radio
    """Chooses what is drawn."""
    image: gr.Image
    cost: gr.HTML
    quadtree: Sequence[Any]
    """Mode, split threshold and budget."""


def header(text: PageText, choose_model: bool) -> gr.Dropdown:
    """Lays out title, notice, model and the switch between light and dark."""
    with gr.Row(elem_id="head", visible=text.heading or choose_model):
        about = f'<h1>{TITLE}</h1><p>{text.notice}</p><p class="about">{ABOUT}</p>'
        gr.HTML(about, elem_id="title", visible=text.heading)
        with gr.Row(elem_id="tools"):
            model = gr.Dropdown([], label="Model", elem_id="model", container=False, visible=choose_model)
            model.api_info = lambda: {"type": "string"}  # type: ignore[method-assign]  # the choices come later
            appearance = gr.Button("Light / dark", size="sm", elem_id="appearance", min_width=0)
    appearance.click(None, js="() => window.llavaPage.switchAppearance()")
    return model


def picture_card(text: PageText) -> PictureCard:
    """Lays out the picture and the examples."""
    gr.HTML("<h2>Picture</h2>")
    picture = gr.Image(
        text.examples[0] if text.examples else None,
        label="Picture",
        show_label=False,
        sources=["upload", "webcam", "clipboard"],
        height=PICTURE_HEIGHT,
        elem_id="picture",
        placeholder="Drop a picture here, paste one, or choose a file",
        alt_text="The picture that the conversation is about",
    )
    buttons = [gr.Button(name, elem_id=f"{name.lower()}-picture", visible="hidden") for name in ("Restore", "Refuse")]
    rows = [[path] for path in text.examples]
    if rows:  # not `gr.Examples`, whose clicks ask the server first: a question could overtake them
        about = "Or try one of these"
        gr.Dataset(components=[picture], samples=rows, label=about, elem_id="examples", samples_per_page=len(rows))
    return PictureCard(picture, *buttons)


def settings_card(ranges: Mapping[str, Range]) -> list[gr.Slider]:
    """Lays out the settings of the answer."""
    gr.HTML("<h2>Answer</h2>")
    return [
        _slider(ranges["temperature"], Sampling.temperature, 0.05, info="0 takes the likeliest word."),
        _slider(ranges["top_p"], 1, 0.05, info="Share of the likeliest words to draw from."),
        _slider(ranges["max_new_tokens"], Sampling.max_new_tokens, 1),
    ]


def _slider(range: Range, value: float, step: float, **options: Any) -> gr.Slider:
    return gr.Slider(range.low, range.high, value, step=step, label=range.label, **options)


def view_card(demo: Demo, text: PageText) -> ViewCard:
    """Lays out the drawing, what it costs, and how the picture is cut."""
    settings, most = demo.backend.defaults, demo.backend.max_tokens
    both = settings is not None
    gr.HTML("<h2>What the model sees</h2>")
    gr.HTML(STATUS, elem_id="cutting")
    choice = gr.Radio(demo.views, value=LINES, label="View", show_label=False, elem_id="view", container=False)
    image = gr.Image(
        label="What the model sees",
        show_label=False,
        interactive=False,
        format="png",
        height=VIEW_HEIGHT,
        buttons=["fullscreen", "download"],
        elem_id="seen",
        alt_text=ALTS[LINES],
    )
    cost = gr.HTML(OPENING if text.examples else NO_PICTURE, label="Tokens", elem_id="meter")
    quadtree = QUESTION if settings and settings.budget == "question" else QLIP
    start = quadtree if both and demo.backend.quadtree else CLIP
    mode = gr.Radio(
        MODES, value=start, label="Way of seeing", show_label=False, elem_id="way", visible=both, container=False
    )
    ranges, shown = ranges_of(demo.backend), {"visible": both}
    threshold = settings.alpha if settings else 0
    hint = "0 splits most; higher splits less."
    alpha = _slider(ranges["alpha"], threshold, 0.05, info=hint, elem_id="alpha", **shown)
    largest = min(settings.max_tokens or most, most) if settings else most
    budget = _slider(ranges["budget"], largest, 1, info="Most visual tokens per picture.", elem_id="budget", **shown)
    if demo.backend.note:
        gr.HTML(f"<p>{demo.backend.note}</p>", elem_id="note")
    return ViewCard(choice, image, cost, [mode, alpha, budget])


def talk_card(demo: Demo, text: PageText) -> ConversationCard:
    """Lays out the conversation, the question box and the buttons."""
    gr.HTML("<h2>Conversation</h2>")
    chat = gr.Chatbot(
        label="Conversation",
        show_label=False,
        elem_id="chat",
        buttons=["copy"],
        autoscroll=False,  # `page.js` follows the answer
        render_markdown=False,  # messages are HTML, see `Session.messages`
        latex_delimiters=[],
        placeholder="### What would you like to know?",
        examples=[{"text": question} for question in text.questions],
        feedback_options=None if demo.feedback is None else [LIKE, DISLIKE, REPORT],
    )
    strip = gr.HTML("", elem_id="strip")
    remove = gr.Button("Remove", elem_id="remove-picture", visible="hidden")
    gr.HTML(STATUS, elem_id="waiting")
    spent = gr.HTML(NO_COST, label="Cost", elem_id="spent")
    with gr.Row(elem_id="suggestions"):
        suggestions = [gr.Button(question, size="sm", min_width=0) for question in text.questions]
    with gr.Column(elem_id="ask-bar"):
        with gr.Row(elem_id="composer"):
            add = gr.UploadButton(
                "+ Picture", file_count="multiple", size="md", elem_id="add-picture", file_types=["image"], min_width=0
            )
            question = gr.Textbox(
                label="Question",
                show_label=False,
                placeholder="Ask about the picture",
                lines=1,
                max_lines=5,
                elem_id="question",
                container=False,
            )
            buttons = {"Ask": gr.Button("Ask", variant="primary", size="md", elem_id="ask", min_width=0)}
        with gr.Row(elem_id="buttons"):
            both = demo.backend.defaults is not None
            for name, usable in (("Stop", False), ("Regenerate", False), ("Undo", False), ("Clear", True)):
                buttons[name] = gr.Button(name, size="md", elem_id=name.lower(), interactive=usable)
            buttons["Compare"] = gr.Button("Compare with CLIP", size="md", elem_id="compare", visible=both)
    update, press = gr.Button("Update", elem_id="update-tools", visible="hidden"), gr.Button(visible=False)
    return ConversationCard(chat, spent, question, buttons, suggestions, add, strip, remove, update, press)


def compare_card() -> list[gr.HTML]:
    """Lays out the comparison: its question, then the head and body of each side."""
    parts = [gr.HTML(NO_COST, label="Compared question", elem_id="compare-question")]
    with gr.Row(elem_id="sides"):
        for name in (CLIP, QLIP):
            with gr.Column(elem_classes="side", elem_id=f"side-{name.lower()}"):
                parts += [gr.HTML(NO_COST, label=f"{name} head"), gr.HTML(NO_COST, label=f"{name} answer")]
    return parts
