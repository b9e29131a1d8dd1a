"""The comparison of an engine with one row at a time, on a tiny batch, before it is used."""

from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import torch
from torch import Tensor

from gradfiltering.data.batches import IGNORED, Batch
from gradfiltering.errors import UserError, is_out_of_memory
from gradfiltering.gradients.attention import EAGER, set_attention
from gradfiltering.gradients.prefix import FrozenPrefix
from gradfiltering.gradients.statistics import GradientMeasurement
from gradfiltering.gradients.unsupported import UnsupportedModelError
from gradfiltering.models.causal_model import FunctionalModel
from gradfiltering.models.lora import Adapters
from gradfiltering.models.objectives import Objective, ResponseNLL

if TYPE_CHECKING:
    from peft import PeftModel

# Largest relative error of an example's gradient. Rounding stays far below it, a term left out does not.
TOLERANCES = {torch.float64: 1e-3, torch.float32: 1e-2}
NARROW_TOLERANCE = 0.3  # bf16, fp16
CAUSALITY_TOLERANCES = {torch.float64: 1e-5, torch.float32: 1e-3}  # of the logits of two tokens
NARROW_CAUSALITY_TOLERANCE = 0.05
PREFIX_TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-4}  # the same operations in batches of another size
NARROW_PREFIX_TOLERANCE = 0.05
LENGTHS, PROMPT_TOKENS = (7, 5), 2


class CheckedEngine(Protocol):
    """An engine as the comparison needs it."""

    name: ClassVar[str]
    model: "PeftModel"
    adapter_name: str
    objective: Objective
    chunk_tokens: int

    @property
    def base_model(self) -> Any:
        """The frozen model under the adapters."""

    def prepare_model(self) -> None:
        """Choose how the model computes on its device."""

    def measure(
        self, adapters: Adapters, batch: Batch, with_mean_gradient: bool, statistics: Any
    ) -> GradientMeasurement:
        """Measure a batch."""


class PrefixedEngine(CheckedEngine, Protocol):
    """An engine that can go on from what the frozen layers hand on."""

    prefix: FrozenPrefix | None

    def compute_prefix_states(self, prefix: FrozenPrefix, input_ids: Tensor) -> Tensor:
        """Compute what enters the first adapted layer."""


def check_engine(engine: CheckedEngine) -> None:
    """Compare an engine's per-example gradients of two padded rows with those of one row at a time.

    A list of architectures would be out of date with every release of transformers, and would not
    know the user's own; a comparison of the numbers covers whatever the model does. It costs seven
    passes over a dozen tokens. Terms too small to tell on so few tokens (a soft cap, a window) are
    the concern of `EagerAttention`, which compares the attention of each layer.

    Raises:
        UnsupportedModelError: the engine fails, or its gradients differ.
        UserError: a token sees later ones, or padding changes a row, which no engine can make good.
    """
    model, model_name = engine.model, type(engine.base_model).__name__
    adapters = _random_adapters(model, engine.adapter_name)
    batch = _padded_batch(engine.base_model).to(model.device)
    _refuse_selected_tokens(engine.base_model)
    settings = engine.objective, engine.chunk_tokens
    engine.objective, engine.chunk_tokens = ResponseNLL(), batch.input_ids.numel()
    attention = engine.base_model.config._attn_implementation
    try:
        set_attention(engine.base_model, EAGER)
        _check_causality(model, batch)
        expected_gradients = [_row_gradient(model, adapters, batch, row) for row in range(len(LENGTHS))]
        set_attention(engine.base_model, attention)
        engine.prepare_model()

        def squared_error(parameter_name: str, example_gradients: Tensor) -> Tensor:
            expected = torch.stack([gradient[parameter_name] for gradient in expected_gradients])
            return (example_gradients[0] - expected).double().square().flatten(1).sum(1)[None]

        stacked_adapters = {parameter_name: value[None] for parameter_name, value in adapters.items()}
        measured = engine.measure(stacked_adapters, batch, True, {"squared_error": squared_error})
    except (AttributeError, IndexError, KeyError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        if isinstance(error, UserError | torch.OutOfMemoryError) or is_out_of_memory(error):
            raise
        raise UnsupportedModelError(
            f"a trial of the {engine.name} engine with {model_name} failed: {str(error).splitlines()[0][:200]}"
        ) from error
    finally:
        engine.objective, engine.chunk_tokens = settings
    squared_norms = torch.stack(
        [sum((value.double().square().sum() for value in row.values()), torch.zeros(())) for row in expected_gradients]
    )
    relative_error = float((measured.statistics["squared_error"][0] / squared_norms.clamp(min=1e-60)).sqrt().max())
    if not relative_error <= TOLERANCES.get(next(model.parameters()).dtype, NARROW_TOLERANCE):
        raise UnsupportedModelError(
            f"in a trial with {model_name} the gradients of the {engine.name} engine differ from those of one row at "
            f"a time by {relative_error:.1g} of their norm"
        )


def compare_prefix(engine: PrefixedEngine, prefix: FrozenPrefix) -> str:
    """Compare gradients that go on from a frozen prefix with those through all layers, on two padded rows.

    Args:
        engine: was checked by `check_engine`, and has no prefix.
        prefix: of its model.

    Returns:
        Why the prefix cannot be used; empty where the gradients are equal to rounding.
    """
    model, model_name = engine.model, type(engine.base_model).__name__
    adapters = {name: value[None] for name, value in _random_adapters(model, engine.adapter_name).items()}
    batch = _padded_batch(engine.base_model).to(model.device)
    settings = engine.objective, engine.chunk_tokens
    engine.objective, engine.chunk_tokens = ResponseNLL(), batch.input_ids.numel()
    example_gradients: list[Adapters] = []

    def collect(parameter_name: str, gradients: Tensor) -> Tensor:
        example_gradients[-1][parameter_name] = gradients[0].double()
        return gradients.flatten(2).sum(2)

    try:
        states = engine.compute_prefix_states(prefix, batch.input_ids)
        for row, length in enumerate(LENGTHS):  # padding has states of any kind
            states[row, length:] = states[row, length - 1]
        # A model that remembers anything of the frozen layers remembers other rows by now.
        engine.compute_prefix_states(prefix, batch.input_ids.flip(1))
        engine.prefix = prefix
        for compared_batch in (replace(batch, prefix_states=states), batch):
            example_gradients.append({})
            engine.measure(adapters, compared_batch, False, {"collect": collect})
            engine.prefix = None
    except (AttributeError, IndexError, KeyError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        if isinstance(error, torch.OutOfMemoryError) or is_out_of_memory(error):
            raise
        reason = error.reason if isinstance(error, UnsupportedModelError) else str(error).splitlines()[0][:200]
        return f"{model_name} cannot go on from what its frozen layers hand on: {reason}"
    finally:
        engine.prefix = None
        engine.objective, engine.chunk_tokens = settings
    prefix_gradients, full_gradients = (
        torch.cat([by_name[name].flatten(1) for name in sorted(by_name)], 1) for by_name in example_gradients
    )  # [rows, parameters]
    differences = (prefix_gradients - full_gradients).norm(dim=1)
    relative_error = float((differences / full_gradients.norm(dim=1).clamp(min=1e-30)).max())
    if relative_error <= PREFIX_TOLERANCES.get(next(model.parameters()).dtype, NARROW_PREFIX_TOLERANCE):
        return ""
    return (
        f"gradients of {model_name} that go on from what its frozen layers hand on differ by {relative_error:.1g} of "
        "their norm"
    )


def _refuse_selected_tokens(base_model: Any) -> None:
    """Refuse sparse attention: which of several tokens with equal scores it selects depends on padding.

    The scores are those of an indexer behind a ReLU, so many are 0. No trial on few tokens would show it.
    """
    for module in base_model.modules():
        if type(module).__name__.endswith("Indexer"):
            raise UserError(
                f"{type(base_model).__name__} attends to the tokens that a {type(module).__name__} selects, and among "
                "tokens of equal scores the padded length decides, so a row's gradient would depend on its batch; "
                "choose another model"
            )


def _random_adapters(model: "PeftModel", adapter_name: str) -> Adapters:
    """Draw one adapter; B is not 0, so that A has a gradient, too."""
    generator = torch.Generator().manual_seed(0)
    return {
        name: (torch.randn(parameter.shape, generator=generator) * (0.3 * parameter.shape[-1] ** -0.5)).to(parameter)
        for name, parameter in model.named_parameters()
        if f".{adapter_name}." in name and ".lora_" in name
    }


def _padded_batch(base_model: Any) -> Batch:
    vocabulary_size = len(base_model.get_input_embeddings().weight)
    input_ids = (3 + 5 * torch.arange(len(LENGTHS) * max(LENGTHS))) % vocabulary_size
    input_ids = input_ids.view(len(LENGTHS), -1)
    labels = input_ids.clone()
    labels[:, :PROMPT_TOKENS] = IGNORED
    for row, length in enumerate(LENGTHS):
        labels[row, length:] = IGNORED
    return Batch(input_ids, labels, torch.arange(len(LENGTHS)))


@torch.no_grad()
def _check_causality(model: "PeftModel", batch: Batch) -> None:
    """Refuse a model in which a token sees later ones, as padding would then change an example."""
    whole_row, beginning = batch.input_ids[:1], batch.input_ids[:1, :PROMPT_TOKENS]
    logits, logits_of_beginning = (
        model(input_ids=input_ids, use_cache=False).logits[0, :PROMPT_TOKENS].double()
        for input_ids in (whole_row, beginning)
    )
    tolerance = CAUSALITY_TOLERANCES.get(next(model.parameters()).dtype, NARROW_CAUSALITY_TOLERANCE)
    if (logits - logits_of_beginning).norm() > tolerance * logits.norm():
        raise UserError(
            f"in {type(model.get_base_model()).__name__} a token sees later ones, so it cannot learn to predict the "
            "next; give a causal language model (of an encoder such as BERT, one with is_decoder=true)"
        )


def _row_gradient(model: "PeftModel", adapters: Adapters, batch: Batch, row: int) -> Adapters:
    """Compute the gradient of one row without padding, by autograd."""
    parameters = {name: value.detach().clone().requires_grad_() for name, value in adapters.items()}
    row_batch = Batch(
        batch.input_ids[row : row + 1, : LENGTHS[row]],
        batch.labels[row : row + 1, : LENGTHS[row]],
        batch.example_id[row : row + 1],
    )
    with torch.enable_grad():
        loss = ResponseNLL()(FunctionalModel(model, parameters), row_batch)[0]
        gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True, materialize_grads=True)
    return dict(zip(parameters, gradients, strict=True))
