"""The model. Importing it registers the heads that are not in `retrieval.py`."""

from method.model import windows  # noqa: F401
