"""Answers as HTML: their Markdown is rendered, everything else in them shows as the model wrote it."""

from __future__ import annotations

from functools import cache
from html import escape

from markdown_it import MarkdownIt
from markdown_it.token import Token

from llava.serve.web.toasts import as_html, replace_surrogates

LITERAL = (
    *("autolink", "code", "entity", "escape", "html_block", "html_inline"),
    *("image", "lheading", "link", "reference"),
)
"""Rules of CommonMark that are switched off. A picture can ask the model for links and for images of other hosts; HTML,
entities, backslashes (LaTeX) and four leading blanks would vanish from the answer; and a line would be a heading as
long as of the list below it only the first dash has come."""

PARAGRAPH = ("paragraph_open", "inline", "paragraph_close")

DEPTH = 2
"""Levels of headings that the page has above an answer's."""


@cache
def _parser() -> MarkdownIt:
    return MarkdownIt("commonmark", {"html": False, "breaks": True}).enable(["table", "strikethrough"]).disable(LITERAL)


def _is_plain(token: Token) -> bool:
    """Whether a token shows as it was written."""
    children = token.children or ()
    return token.type in PARAGRAPH and all(child.type in ("text", "softbreak", "hardbreak") for child in children)


def render_answer(text: str, mark: str = "") -> str:
    """Renders an answer, whole or as far as it has come, as HTML.

    Headings, emphasis, lists, quotes, tables and code are rendered (CommonMark, with tables and struck text). Links,
    images, HTML and LaTeX are not.

    Args:
        text: The answer.
        mark: A note behind it; empty for none.

    Returns:
        The text itself, escaped, where it has no Markdown; otherwise an element whose `data-text` is the answer as it
        was written, for the copy button. Empty without text and mark.
    """
    text = replace_surrogates(text)
    kind = "mark" if text.strip() else "mark alone"  # the style sheet hides the votes on an answer without text
    note = f'<span class="{kind}">{as_html(mark)}</span>' if mark else ""
    parser = _parser()
    tokens = parser.parse(text)
    if all(map(_is_plain, tokens)):
        return f"{as_html(text)} {note}".strip()
    for token in tokens:
        if token.type in ("heading_open", "heading_close"):
            token.tag = f"h{min(int(token.tag[1:]) + DEPTH, 6)}"
    body = parser.renderer.render(tokens, parser.options, {})
    html = f'<div class="answer" data-text="{escape(text)}">{body}{note}</div>'
    return html.replace("\n", "&#10;")  # Gradio would change the indents of lines
