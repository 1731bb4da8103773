"""The path of a request within an application that is mounted under a prefix."""

from __future__ import annotations

from starlette.types import Scope


def route_path(scope: Scope) -> str:
    """Removes the prefix under which the application is mounted, such as Ray Serve's `route_prefix`, from the path.

    This is the rule by which Starlette matches routes.
    """
    path, prefix = scope["path"], scope.get("root_path", "")
    if not prefix or not path.startswith(prefix):
        return path
    rest = path[len(prefix) :]
    return rest if rest.startswith("/") or not rest else path
