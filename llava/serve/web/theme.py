"""The page's theme, light and dark: neutral greys with one accent, and system fonts."""

from __future__ import annotations

from importlib.resources import files

import gradio as gr

FONT = ["-apple-system", "BlinkMacSystemFont", "Segoe UI", "Roboto", "Helvetica Neue", "Arial", "sans-serif"]
SCRIPTS = ("page.js", "pictures.js", "question.js", "leaves.js", "names.js")  # all use what the first defines
MONO = ["ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "Liberation Mono", "monospace"]


def theme() -> gr.themes.Base:
    """Builds the theme of Gradio's components; nothing is fetched from other hosts."""
    return gr.themes.Base(
        primary_hue=gr.themes.colors.teal,
        neutral_hue=gr.themes.colors.slate,
        radius_size=gr.themes.sizes.radius_md,
        spacing_size=gr.themes.sizes.spacing_md,
        text_size=gr.themes.sizes.text_md,
        font=FONT,
        font_mono=MONO,
    ).set(
        body_background_fill="#f6f7f9",
        body_background_fill_dark="#0d1117",
        body_text_color="#1c2430",
        body_text_color_dark="#e2e8f0",
        body_text_color_subdued="#5b6675",
        body_text_color_subdued_dark="#94a0b3",
        background_fill_primary="#ffffff",
        background_fill_primary_dark="#151b24",
        background_fill_secondary="#f6f7f9",
        background_fill_secondary_dark="#10161e",
        block_background_fill="transparent",
        block_background_fill_dark="transparent",
        block_border_width="0px",
        block_border_width_dark="0px",
        block_shadow="none",
        block_label_text_weight="600",
        block_title_text_weight="600",
        block_title_text_color="#1c2430",
        block_title_text_color_dark="#e2e8f0",
        block_title_text_size="0.875rem",
        block_info_text_size="0.8rem",
        border_color_primary="#e1e5eb",
        border_color_primary_dark="#27303d",
        input_background_fill="#ffffff",
        input_background_fill_dark="#10161e",
        input_border_color="#d5dbe3",
        input_border_color_dark="#2d3846",
        input_border_width="1px",
        input_shadow="none",
        input_shadow_focus="0 0 0 3px rgba(13,148,136,.18)",
        button_primary_background_fill="#0f766e",
        button_primary_background_fill_hover="#115e59",
        button_primary_background_fill_dark="#0f766e",
        button_primary_background_fill_hover_dark="#115e59",
        button_primary_text_color="#ffffff",
        button_primary_text_color_dark="#ffffff",
        button_secondary_background_fill="#ffffff",
        button_secondary_background_fill_hover="#f0f2f5",
        button_secondary_background_fill_dark="#1b2330",
        button_secondary_background_fill_hover_dark="#243040",
        button_secondary_border_color="#d5dbe3",
        button_secondary_border_color_dark="#2d3846",
        button_border_width="1px",
        button_large_text_weight="600",
        slider_color="#0f766e",
        slider_color_dark="#2dd4bf",
    )


def css() -> str:
    """Reads the style sheet of the page's own parts."""
    return files("llava.serve.web").joinpath("style.css").read_text(encoding="utf-8")


def head() -> str:
    """Builds the page's scripts for its head."""
    folder = files("llava.serve.web")
    texts = [folder.joinpath(name).read_text(encoding="utf-8") for name in SCRIPTS]
    return "".join(f"<script>{text}</script>" for text in texts)
