"""Paths that a hub or an archive names."""


def is_safe(path: str) -> bool:
    """Whether a relative path stays inside its folder."""
    return path.isprintable() and not {"", ".."} & set(path.replace("\\", "/").split("/"))
