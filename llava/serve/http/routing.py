"""The path of a request within an application that is mounted under a prefix."""

from __future__ import annotations

from starlette.types import Scope


def route_path(scope: Scope) -> str:
    """Removes the prefix under which the application is mounted, such as Ray Serve's `route_prefix`, from the path."""
    path, prefix = scope["path"], scope.get("root_path", "").rstrip("/")
    return path[len(prefix) :] if path == prefix or path.startswith(f"{prefix}/") else path
