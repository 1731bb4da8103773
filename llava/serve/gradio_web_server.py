"""Web demo: `python -m llava.serve.gradio_web_server`, a picture on the left and a conversation about it on the right.

One process, one model. Each visitor's picture and conversation stay in that visitor's session. How answers come about
is the engine's matter; how a picture is cut, and what that costs, is shown without running the model.
"""

from __future__ import annotations

import argparse
import copy
import logging
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.utils import get_upload_folder
from PIL import Image

import qlip
from llava.conversation import Conversation
from llava.model.multimodal_encoder.qlip_encoder import QLIPVisionTower
from llava.serve.cli import DEMO_NOTICE, OneLineParser, add_model_flags, load_engine
from llava.serve.engine import ChatEngine, Sampling
from llava.serve.images import DEFAULT_LIMITS, ImageError, load_image
from llava.utils import demo_picture_path

logger = logging.getLogger(__name__)

Turn = tuple[str, str]  # a question and its answer, "" while there is none
Messages = list[dict[str, str]]  # what a chatbot shows
View = tuple[Image.Image | None, str]  # what the model sees, and what it costs


@dataclass(frozen=True)
class Session:
    """What the demo remembers about one visitor."""

    picture: Image.Image | None = None
    turns: tuple[Turn, ...] = ()


def uploaded_file(upload: Mapping[str, Any]) -> Path:
    """Returns the file that Gradio describes.

    Raises:
        ImageError: for a file that was not uploaded; a request can name any path of this machine.
    """
    path = Path(str(upload.get("path"))).resolve()
    if not path.is_relative_to(Path(get_upload_folder()).resolve()):
        raise ImageError("it was not uploaded")
    return path


def cut(picture: Image.Image, tower: QLIPVisionTower, settings: qlip.QLIPConfig) -> qlip.Leaves:
    """Returns the leaves that a tower would see with these settings; the tower keeps its own."""
    processor = copy.copy(tower.image_processor)
    processor.qlip = settings
    pixels = processor.preprocess(picture, return_tensors="pt")["pixel_values"][0]
    return processor.partition(pixels)


def overlay(picture: Image.Image, leaves: qlip.Leaves) -> Image.Image:
    """Draws the leaves over the picture, about as large as the page shows it, so that lines stay sharp."""
    return qlip.draw_leaves(picture, leaves, cell=min(48, max(4, 600 // max(leaves.grid))))


def caption(leaves: qlip.Leaves, thumbnail_tokens: int = 0) -> str:
    """Says in Markdown what the leaves cost, beside the uniform grid of the same picture."""
    rows, cols = leaves.grid
    count = len(leaves) + thumbnail_tokens
    tokens = "1 visual token" if count == 1 else f"{count} visual tokens"
    extra = f", {thumbnail_tokens} of them the thumbnail's" if thumbnail_tokens else ""
    return f"**{tokens}**{extra}; the uniform grid has {rows * cols}."


def chat_messages(turns: Sequence[Turn]) -> Messages:
    """Returns the turns as a chatbot's messages."""
    roles = ("user", "assistant")
    return [{"role": role, "content": text} for turn in turns for role, text in zip(roles, turn, strict=True) if text]


def prompt_conversation(engine: ChatEngine, turns: Sequence[Turn], question: str) -> Conversation:
    """Returns the conversation that waits for an answer; turns that never got one are left out."""
    conversation = engine.new_conversation()
    user, assistant = conversation.roles
    for asked, answer in [*(turn for turn in turns if turn[1]), (question, None)]:
        first = len(conversation.messages) == conversation.offset
        conversation.append_message(user, engine.first_question(asked, 1) if first else asked)
        conversation.append_message(assistant, answer)
    return conversation


def complaint(text: str) -> gr.Error:
    """Returns an error that shows the visitor this text and leaves no traceback in the log."""
    return gr.Error(text, print_exception=False)


class Demo:
    """The event handlers: one engine, which answers one visitor at a time."""

    def __init__(self, engine: ChatEngine) -> None:
        self.engine = engine
        tower = engine.model.get_vision_tower()
        self.tower: QLIPVisionTower | None = tower if isinstance(tower, QLIPVisionTower) else None
        self.lock = threading.Lock()

    def open_picture(
        self, upload: Mapping[str, Any] | None, alpha: float, budget: float
    ) -> tuple[Session, Image.Image | None, str, Messages]:
        """Starts a new conversation about an uploaded picture (Gradio's description of the file), or about none."""
        try:
            session = Session(load_image(uploaded_file(upload)) if upload else None)
        except ImageError as error:
            raise complaint(f"This picture cannot be used: {error}. Choose another one.") from None
        return session, *self.look(session, alpha, budget), []

    def look(self, session: Session, alpha: float, budget: float) -> View:
        """Draws what the model would see and says what it costs."""
        if self.tower is None or session.picture is None:
            return None, ""
        settings = replace(self.tower.settings, alpha=alpha, max_tokens=int(budget))
        leaves = cut(session.picture, self.tower, settings)
        return overlay(session.picture, leaves), caption(leaves, settings.thumbnail * self.tower.num_patches)

    def ask(
        self, session: Session, question: str, alpha: float, budget: float, temperature: float, max_new_tokens: float
    ) -> Iterator[tuple[Session, Messages, str]]:
        """Streams the answer into the session and the chatbot, and empties the question box."""
        question = question.strip()
        if session.picture is None:
            raise complaint("There is no picture yet. Choose one, then ask.")
        if not question:
            raise complaint("The question is empty. Type one, then press Ask.")
        conversation = prompt_conversation(self.engine, session.turns, question)
        sampling = Sampling(temperature=temperature, max_new_tokens=int(max_new_tokens))
        turns, answer = (*session.turns, (question, "")), ""
        yield replace(session, turns=turns), chat_messages(turns), ""
        try:
            for piece in self.reply(conversation, session.picture, alpha, int(budget), sampling):
                answer += piece
                turns = (*session.turns, (question, answer.strip()))
                yield replace(session, turns=turns), chat_messages(turns), ""
        except ValueError as error:
            raise complaint(f"{error}. Lower the token budget or the answer's length, or clear the chat.") from None
        except RuntimeError:
            logger.exception("the model failed")
            raise complaint("The model failed; the server's log says why. A lower token budget may help.") from None
        if not answer.strip():
            gr.Info("The model had nothing to say. Ask in other words.")

    def reply(
        self, conversation: Conversation, picture: Image.Image, alpha: float, budget: int, sampling: Sampling
    ) -> Iterator[str]:
        """Yields the answer's pieces; the tower keeps the visitor's settings from the first to the last."""
        with self.lock:
            if self.tower is not None:
                self.tower.settings = replace(self.tower.settings, alpha=alpha, max_tokens=budget)
            with closing(self.engine.reply(conversation, [picture], sampling)) as pieces:
                yield from pieces

    def clear(self, session: Session) -> tuple[Session, Messages]:
        """Forgets the conversation and keeps the picture."""
        return replace(session, turns=()), []


def example_pictures() -> list[str]:
    """Returns the paths of the embedded demo's pictures, if it has any."""
    try:
        return sorted(map(str, demo_picture_path().parent.glob("*.png")))
    except FileNotFoundError:
        return []


def build_page(demo: Demo, examples: Sequence[str] = (), notice: str = "") -> gr.Blocks:
    """Lays out the page and ties its events to the demo's handlers. A CLIP tower has no view to show."""
    settings = demo.tower.settings if demo.tower else qlip.QLIPConfig()
    most = demo.engine.context_len
    with gr.Blocks(title="LLaVA with QLIP", analytics_enabled=False, delete_cache=(3600, 3600)) as page:
        session = gr.State(Session())
        gr.Markdown(f"# Ask about a picture\n{notice}")
        with gr.Row():
            with gr.Column():
                first = examples[0] if examples else None
                picture = gr.Image(first, label="Picture", sources=["upload", "clipboard"], height=300)
                if examples:
                    gr.Examples([[path] for path in examples], picture, label="Examples")
                with gr.Column(visible=demo.tower is not None):
                    seen = gr.Image(label="What the model sees", format="png", height=420, buttons=["fullscreen"])
                    cost = gr.Markdown()
                    hint = "0 is the uniform grid; higher leaves more in large pieces."
                    alpha = gr.Slider(0, 5, min(settings.alpha, 5.0), step=0.01, label="Split threshold", info=hint)
                    hint = "The most pieces a picture may have."
                    start = min(settings.max_tokens or most, most)
                    budget = gr.Slider(1, most, start, step=1, label="Token budget", info=hint)
            with gr.Column():
                chat = gr.Chatbot(label="Conversation", height=460, buttons=["copy"])
                question = gr.Textbox(label="Question", placeholder="What is in the picture?")
                with gr.Row():
                    ask = gr.Button("Ask", variant="primary", min_width=90)
                    stop = gr.Button("Stop", min_width=90)
                    clear = gr.Button("Clear", min_width=90)
                temperature = gr.Slider(0, 2, 0.2, step=0.05, label="Temperature", info="0 takes the likeliest word.")
                length = gr.Slider(1, 1024, 512, step=1, label="Longest answer, in tokens")

        limits, talk = [alpha, budget], [session, chat]
        gr.on([alpha.change, budget.change], demo.look, [session, *limits], [seen, cost], show_progress="hidden")
        asked = [session, question, *limits, temperature, length]
        asking = gr.on([ask.click, question.submit], demo.ask, asked, [*talk, question], show_progress_on=ask)
        opened = [session, seen, cost, chat]
        arrived = [page.load, picture.change]
        # Not preprocessed: load_image checks the file before anything is decoded, and says what is wrong with it.
        gr.on(arrived, demo.open_picture, [picture, *limits], opened, preprocess=False, cancels=asking)
        gr.on([clear.click, chat.clear], demo.clear, session, talk, cancels=asking)
        stop.click(None, cancels=asking)
    return page


def serve(page: gr.Blocks, host: str, port: int, share: bool = False, block: bool = True) -> None:
    """Serves the page with the visitor's own fonts, bounded uploads and no record of what is asked."""
    font, mono = ["system-ui", "sans-serif"], ["ui-monospace", "monospace"]
    page.launch(
        server_name=host,
        server_port=port,
        share=share,
        prevent_thread_lock=not block,
        theme=gr.themes.Default(font=font, font_mono=mono),
        max_file_size=DEFAULT_LIMITS.max_bytes,
        run_history=False,
        ssr_mode=False,
        footer_links=[],
    )


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the command line; a wrong one ends the process with exit code 2."""
    parser = OneLineParser(prog="gradio_web_server", description="Chat about pictures in a browser.")
    add_model_flags(parser)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine only)")
    parser.add_argument("--port", type=int, default=7860, help="port to listen on (default: 7860)")
    parser.add_argument("--share", action="store_true", help="make a public link through Gradio's servers")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Loads the model and serves the page until interrupted; returns the exit code."""
    args = parse_args(argv)
    notice = "" if args.model_path else DEMO_NOTICE
    try:
        if notice:
            print(notice, file=sys.stderr)
        page = build_page(Demo(load_engine(args)), example_pictures(), notice.partition(" For ")[0])
        serve(page, args.host, args.port, args.share)
    except (ValueError, OSError, ImportError, RuntimeError) as error:
        print(f"gradio_web_server: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
