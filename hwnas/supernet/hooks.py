"""The chain of mutation hooks that turns a model space into a super-net."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from hwnas.errors import UnsupportedError
from hwnas.nn import ModelSpace, MutableModule, ValueChoice
from hwnas.nn.holding import attribute_mutables
from hwnas.space import MutableExpression
from hwnas.supernet.base import BaseSuperNetModule
from hwnas.supernet.behind_cell import Conv2dBehindCell, LinearBehindCell, refuse_mixed_positions
from hwnas.supernet.fused import take_over_depthwise
from hwnas.supernet.fused_sequence import take_over_sequence
from hwnas.supernet.mixed_attention import MixedMultiheadAttention
from hwnas.supernet.mixed_batch_norm import MixedBatchNorm1d, MixedBatchNorm2d, MixedBatchNorm3d
from hwnas.supernet.mixed_cell import MixedCell, MixedFactoryChoice
from hwnas.supernet.mixed_conv import MixedConv1d, MixedConv2d, MixedConv3d
from hwnas.supernet.mixed_conv_transpose import MixedConvTranspose1d, MixedConvTranspose2d, MixedConvTranspose3d
from hwnas.supernet.mixed_dropout import MixedDropout
from hwnas.supernet.mixed_embedding import MixedEmbedding
from hwnas.supernet.mixed_group_norm import MixedGroupNorm
from hwnas.supernet.mixed_input import MixedInput
from hwnas.supernet.mixed_layer import MixedLayer
from hwnas.supernet.mixed_layer_norm import MixedLayerNorm
from hwnas.supernet.mixed_linear import MixedLinear
from hwnas.supernet.mixed_nas_bench_101_cell import MixedNasBench101Cell
from hwnas.supernet.mixed_nas_bench_201_cell import take_over_nas_bench_201_cell
from hwnas.supernet.mixed_parametrized import MixedParametrized
from hwnas.supernet.mixed_repeat import MixedRepeat
from hwnas.supernet.mixed_rms_norm import MixedRMSNorm
from hwnas.supernet.mixture import Mixture
from hwnas.supernet.relaxation import Relaxation

MutationResult = nn.Module | bool | None | tuple[nn.Module | None, bool]
MutationHook = Callable[[nn.Module, str, dict[str, Any], dict[str, Any]], MutationResult]

_log = logging.getLogger(__name__)

DEFAULT_HOOKS: tuple[MutationHook, ...] = (
    take_over_sequence,
    take_over_depthwise,
    take_over_nas_bench_201_cell,
    MixedLayer.mutate,
    MixedInput.mutate,
    MixedRepeat.mutate,
    MixedCell.mutate,
    MixedFactoryChoice.mutate,
    MixedNasBench101Cell.mutate,
    Conv2dBehindCell.mutate,  # before those of which they are special cases
    LinearBehindCell.mutate,
    refuse_mixed_positions,
    *(
        operation.mutate
        for operation in (
            MixedLinear,
            MixedConv1d,
            MixedConv2d,
            MixedConv3d,
            MixedConvTranspose1d,
            MixedConvTranspose2d,
            MixedConvTranspose3d,
            MixedBatchNorm1d,
            MixedBatchNorm2d,
            MixedBatchNorm3d,
            MixedLayerNorm,
            MixedGroupNorm,
            MixedRMSNorm,
            MixedEmbedding,
            MixedMultiheadAttention,
            MixedDropout,
            MixedParametrized,  # of all other classes
        )
    ),
)


def refuse_leftovers(module: nn.Module, name: str, memo: dict[str, Any], mutate_kwargs: dict[str, Any]) -> bool:
    """Raise for a primitive that no hook has made searchable; the last hook of every chain.

    A module that merely holds modules with choices, a cell for instance, is as searchable as these are.

    Raises
    ------
    UnsupportedError
        Rather than training a model that is not the one that was written.
    """
    if isinstance(module, ModelSpace | BaseSuperNetModule) or not isinstance(module, MutableModule):
        return False
    if labels := own_labels(module):
        raise UnsupportedError(
            f"{name}: {type(module).__name__} decides {', '.join(labels)} but nothing makes it part of a "
            "super-net. Write a BaseSuperNetModule for it and pass its `mutate` in `mutation_hooks`"
        )
    return False


def own_labels(module: MutableModule) -> list[str]:
    """Return the labels that a module itself decides, not those of modules below it."""
    own = [held for held in module.sub_mutables() if not isinstance(held, nn.Module) and not held.is_constraint]
    return list(dict.fromkeys(label for held in own for label in held.simplify()))


def check_searchable(space: nn.Module) -> None:
    """Raise unless there is something to search in a space.

    Raises
    ------
    TypeError
        When it is no model space or has been changed already.
    ValueError
        When it has no choices.
    """
    if not isinstance(space, ModelSpace):
        raise TypeError(f"expected a hwnas.nn.ModelSpace, got a {type(space).__name__}; derive your model from it")
    if is_supernet(space):
        raise TypeError(
            f"this {type(space).__name__} is a super-net already: a search changes the space in place. "
            "Construct the space anew for each search"
        )
    if not space.simplify():
        raise ValueError(f"this {type(space).__name__} has no choices, so there is nothing to search")


def make_supernet(
    space: ModelSpace,
    relaxation: Relaxation,
    hooks: Sequence[MutationHook] = DEFAULT_HOOKS,
    **mutate_kwargs: Any,
) -> ModelSpace:
    """Turn a model space into a super-net, in place.

    Parameters
    ----------
    space : ModelSpace
        Its submodules are replaced; itself it stays what it is, and so do its labels.
    relaxation : Relaxation
        Given to the hooks as ``mutate_kwargs["relaxation"]``.
    hooks : sequence of callable
        Tried in order on every submodule, outer ones before inner ones; see `BaseSuperNetModule.mutate`.
    **mutate_kwargs
        Passed on to the hooks.

    Returns
    -------
    ModelSpace
        `space`.

    Raises
    ------
    UnsupportedError
        When a choice is left that no hook makes searchable. The space is then partly changed.
    TypeError
        When a hook returns something that is no result of a hook.
    """
    if any(isinstance(part, ModelSpace) and part.has_model_parameters for part in space.modules()):
        raise UnsupportedError(
            "the space has a ModelParameterChoice: it is constructed anew for each value, so its members cannot share "
            "weights. Use ValueChoice, Repeat or LayerChoice, or a strategy that trains each member by itself"
        )
    memo: dict[str, Any] = {}
    chain = [*hooks, refuse_leftovers]
    kwargs = {"relaxation": relaxation, **mutate_kwargs}
    replaced: dict[int, nn.Module] = {}

    def visit(parent: nn.Module, prefix: str) -> None:
        _bind_value_choices(parent, prefix, relaxation)
        for child_name, child in _children(parent):
            name = f"{prefix}.{child_name}" if prefix else child_name
            if id(child) not in replaced:
                replaced[id(child)] = _run_chain(chain, child, name, memo, kwargs)
                keep_alive.append(child)
                visit(replaced[id(child)], name)
            parent._modules[child_name] = replaced[id(child)]

    keep_alive: list[nn.Module] = []  # so that no identity is used twice
    visit(space, "")
    return space


def _children(module: nn.Module) -> list[tuple[str, nn.Module]]:
    """Children by name; a module that is held twice is there twice, unlike in `named_children`."""
    return [(name, child) for name, child in module._modules.items() if child is not None]


def _run_chain(
    chain: Sequence[MutationHook], module: nn.Module, name: str, memo: dict[str, Any], kwargs: dict[str, Any]
) -> nn.Module:
    if isinstance(module, BaseSuperNetModule):
        return module
    for hook in chain:
        result = hook(module, name, memo, kwargs)
        if isinstance(result, nn.Module):
            replacement, stop = result, True
        elif isinstance(result, tuple):
            replacement, stop = module if result[0] is None else result[0], bool(result[1])
        elif result is None or isinstance(result, bool):
            replacement, stop = module, bool(result)
        else:
            raise TypeError(f"{name}: mutation hook {hook} returned {result!r}; expected a module, a bool, or both")
        if replacement is not module and not isinstance(replacement, BaseSuperNetModule):
            _log.warning("%s: the replacement %s is no BaseSuperNetModule", name, type(replacement).__name__)
        module = replacement
        if stop:
            break
    return module


def _bind_value_choices(module: nn.Module, name: str, relaxation: Relaxation) -> None:
    """Let value choices that are called in `forward` read the relaxation."""
    if isinstance(module, BaseSuperNetModule):
        return
    for attribute, value in attribute_mutables(module):
        if isinstance(value, ValueChoice):

            def read(expression: MutableExpression, where: str = f"{name}.{attribute}".lstrip(".")) -> Any:
                present = relaxation.value(expression)
                if isinstance(present, Mixture):
                    labels = ", ".join(leaf.label for leaf in expression.leaves())
                    raise UnsupportedError(
                        f"{where} (label {labels}): a value that is used in `forward` cannot be a mixture; use a "
                        "strategy that samples one architecture, such as RandomOneShot"
                    )
                return present

            value.read_with(read)


def supernet_modules(space: nn.Module) -> list[BaseSuperNetModule]:
    """Return the mixed modules of a super-net."""
    return [module for module in space.modules() if isinstance(module, BaseSuperNetModule)]


def is_supernet(space: nn.Module) -> bool:
    """Tell whether a space has been made into a super-net."""
    return bool(supernet_modules(space))
