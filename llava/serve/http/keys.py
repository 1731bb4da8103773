"""What a key or a shared secret may be."""

from __future__ import annotations

import re

TOKEN_RULE = "may not be empty, and may hold ASCII letters, digits and signs only, without blanks"


def is_bearer_token(text: str) -> bool:
    """Whether a header can carry a key as it is, and all clients send the same bytes for it."""
    return re.fullmatch("[!-~]+", text) is not None
