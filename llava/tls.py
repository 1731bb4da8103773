"""The public certificate authorities, read once for all HTTPS connections."""

from __future__ import annotations

import ssl
from functools import cache

import httpx


@cache
def tls_context(trust_env: bool = False) -> ssl.SSLContext:
    """Makes the `verify` of httpx's clients: each would read the authorities by itself, which takes 30 ms or more.

    Args:
        trust_env: Whether `SSL_CERT_FILE` and `SSL_CERT_DIR` name the authorities, if they are set.
    """
    return httpx.create_ssl_context(trust_env=trust_env)
