"""The error of an engine that does not serve a model."""

from gradfiltering.errors import UserError


class UnsupportedModelError(UserError):
    """The model does something that a gradient engine would not compute correctly."""
