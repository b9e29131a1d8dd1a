"""The error of an engine that does not serve a model."""

from gradfiltering.errors import UserError

ADVICE = (
    "let the engine be chosen automatically, which tries each on the model, or adapt only linear layers that every "
    "token goes through once, such as those of the attention"
)


class UnsupportedModelError(UserError):
    """The model does something that a gradient engine would not compute correctly.

    Attributes:
        reason: the message without the advice.
    """

    def __init__(self, reason: str):
        super().__init__(f"{reason}; {ADVICE}")
        self.reason = reason
