"""Where images may come from: local files, data: URLs, and hosts of which networks."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass


@dataclass(frozen=True)
class SourcePolicy:
    """What a source of an image may name; data: URLs always may be."""

    paths: bool = True
    """Local files."""
    urls: bool = True
    """http: and https: URLs, which are downloaded."""
    loopback: bool = False
    """URLs of this machine."""
    private: bool = False
    """URLs of this machine and of others in its network: for those that the user of this process gives, never for those
    of a client."""
    hosts: Collection[str] | None = None
    """The only hosts that URLs may name, in lower case; None for any."""

    def describe(self) -> str:
        """Says what is allowed, for an error."""
        if not self.urls:
            urls = "a data: URL (data:image/png;base64,...)"
        elif self.hosts is None:
            urls = "http:, https: or data:"
        else:
            urls = "data:, or http: and https: with a host among the server's --allowed-media-domains"
        return f"{urls}, or the file's path" if self.paths else urls

    def allows(self, address: str) -> bool:
        """Whether an IP address may be connected to."""
        from llava.addresses import is_global_unicast, is_loopback_ip  # not needed for local files

        return self.private or is_global_unicast(address) or (self.loopback and is_loopback_ip(address))
