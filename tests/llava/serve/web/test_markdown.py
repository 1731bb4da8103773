"""Answers as HTML: Markdown as CommonMark renders it, and nothing of what a model writes lost or taken for HTML."""

from __future__ import annotations

from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llava.serve.web.markdown import render_answer

RENDERED = set(
    ["div", "p", "br", "h3", "h4", "h5", "h6", "em", "strong", "s", "code", "pre", "ul", "ol", "li", "blockquote"]
    + ["hr", "table", "thead", "tbody", "tr", "th", "td", "span"]
)
"""Elements that an answer may become."""


class Elements(HTMLParser):
    """Collects the elements, attributes and text of HTML as a browser reads it."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.attributes: list[dict[str, str | None]] = []
        self.text = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes.append(dict(attributes))

    def handle_data(self, data: str) -> None:
        self.text += data


def inside(text: str) -> str:
    """The HTML within an answer's element, lines apart again; of one without Markdown, the answer."""
    if not render_answer(text).startswith("<div"):
        return render_answer(text)
    html = render_answer(text).replace("&#10;", "\n")
    return html.split(">", 1)[1].removesuffix("</div>").strip()


@pytest.mark.parametrize(
    ("text", "html"),
    [
        ("a **b** *c* ~~d~~ `e`", "<p>a <strong>b</strong> <em>c</em> <s>d</s> <code>e</code></p>"),
        ("# a\n## b\n###### c", "<h3>a</h3>\n<h4>b</h4>\n<h6>c</h6>"),
        ("*one*\ntwo\n\nthree", "<p><em>one</em><br />\ntwo</p>\n<p>three</p>"),
        ("- a\n- b", "<ul>\n<li>a</li>\n<li>b</li>\n</ul>"),
        ("3. a\n4. b", '<ol start="3">\n<li>a</li>\n<li>b</li>\n</ol>'),
        ("```python\nif a < b:\n    c\n```", '<pre><code class="language-python">if a &lt; b:\n    c\n</code></pre>'),
        ("```\nunfinished", "<pre><code>unfinished</code></pre>"),
        ("> a", "<blockquote>\n<p>a</p>\n</blockquote>"),
    ],
)
def test_markdown_is_rendered(text: str, html: str) -> None:
    assert inside(text) == html


@pytest.mark.parametrize(
    "text",
    [
        "<b>bold</b> <script>x</script>",
        "&lt; &amp; &copy;",
        "[l](https://elsewhere.example) ![i](https://elsewhere.example/i.png) <https://elsewhere.example>",
        "[a]: https://elsewhere.example",
        r"$$x^2$$ \(y\) \[z\] \alpha_1 \*",
        "snake_case_name and 2 * 3 * 4",
        "a heading?\n---------x",
    ],
)
def test_what_is_not_rendered_shows_as_it_was_written(text: str) -> None:
    assert Elements(render_answer(text)).text == text
    assert not Elements(render_answer(text)).tags
    rest = Elements(render_answer(f"{text} **bold**"))
    assert rest.text.strip() == f"{text} bold"
    assert set(rest.tags) - {"br"} == {"div", "p", "strong"}


def test_a_list_that_begins_below_a_line_is_no_heading_at_its_first_dash() -> None:
    assert inside("These:\n-") == "These:\n-"
    assert inside("*These*:\n-") == "<p><em>These</em>:<br />\n-</p>"


def test_a_table_is_one() -> None:
    read = Elements(render_answer("|a|b|\n|-|-|\n|1|2|"))
    assert read.tags.count("td") == 2
    assert read.text.split() == ["a", "b", "1", "2"]


def test_a_mark_follows_the_text_and_stands_alone_without_any() -> None:
    assert render_answer("a", "cut <b>") == 'a <span class="mark">cut &lt;b&gt;</span>'
    assert render_answer("*a*", "cut <b>").endswith('<span class="mark">cut &lt;b&gt;</span></div>')
    assert render_answer("", "…") == '<span class="mark alone">…</span>'
    assert render_answer("") == ""


TEXTS = st.text(st.one_of(st.sampled_from("\n\t *_`~#>-+|[]()!<&;:.1\"'\\$ab"), st.characters()), min_size=1)


@given(text=TEXTS)
def test_any_text_is_kept_as_it_was_written_for_the_copy_button(text: str) -> None:
    """But for lone surrogates, which cannot be sent, and blanks around a plain one."""
    kept = text.encode("utf-8", "replace").decode()
    read = Elements(render_answer(text))
    assert (read.attributes[0]["data-text"] if read.attributes else read.text).strip() == kept.strip()


@given(text=TEXTS)
def test_no_text_becomes_another_element_or_attribute(text: str) -> None:
    html = render_answer(text)
    read = Elements(html)
    assert set(read.tags) <= RENDERED
    assert {name for own in read.attributes for name in own} <= {"class", "data-text", "start", "style"}


@given(text=st.text(st.sampled_from("ab <&;\"'/()[]!\\$é漢\n"), min_size=1))
def test_without_markdown_no_character_is_lost(text: str) -> None:
    """All but blanks, which HTML joins."""
    assert Elements(render_answer(text)).text.split() == text.split()
