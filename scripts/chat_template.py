"""Prompt formats of `llava.conversation` as chat templates of transformers' processors.

Knows nothing of checkpoints.
"""

from __future__ import annotations

import json
import logging

from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.conversation import SeparatorStyle, conv_templates

logger = logging.getLogger(__name__)


def chat_template(conv_mode: str, image_token: str = DEFAULT_IMAGE_TOKEN) -> str | None:
    """Builds the format as Jinja; None for formats that are not simply turn after turn.

    A system message, which may only come first, replaces the format's own system text.

    Args:
        conv_mode: a key of `conv_templates`.
        image_token: the placeholder of an image.
    """
    conversation = conv_templates[conv_mode]
    if conversation.sep_style is not SeparatorStyle.TWO:
        logger.warning("the prompt template %r has no chat template in transformers' format; write prompts", conv_mode)
        return None
    user, assistant = conversation.roles
    system, end_user = json.dumps(conversation.system), json.dumps(conversation.sep)
    end_assistant = json.dumps(conversation.sep2 or conversation.sep)
    content = (
        "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
        f"{{% for part in message['content'] if part['type'] == 'image' %}}{image_token}\n{{% endfor %}}"
        "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}{% endif %}"
    )
    return (
        "{% if messages and messages[0]['role'] == 'system' %}"
        f"{{% set message = messages[0] %}}{content}{{% set turns = messages[1:] %}}"
        f"{{% else %}}{{{{ {system} }}}}{{% set turns = messages %}}{{% endif %}}{{{{ {end_user} }}}}"
        "{% for message in turns %}"
        f"{{% if message['role'] == 'user' %}}{user}: {content}{{{{ {end_user} }}}}"
        f"{{% elif message['role'] == 'assistant' %}}{assistant}: {content}{{{{ {end_assistant} }}}}"
        "{% else %}{{ raise_exception('the role of a message is ' ~ message['role'] ~ '; allowed are user and"
        " assistant, and system in the first message') }}{% endif %}{% endfor %}"
        f"{{% if add_generation_prompt %}}{assistant}:{{% endif %}}"
    )
