"""`LayerChoice`: one of several modules."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import nn

from hwnas.nn.freezing import freeze_module
from hwnas.nn.holding import module_mutables
from hwnas.nn.mutable_module import MutableModule
from hwnas.nn.value_choice import given_weights
from hwnas.space import Categorical, Mutable, Sample
from hwnas.space.labels import resolve_label


class LayerChoice(MutableModule):
    """Choose one of several modules.

    Parameters
    ----------
    candidates : sequence or mapping of torch.nn.Module
        A sequence is chosen from by position, a mapping by name. Candidates may hold choices themselves.
    weights, prior : sequence of float, optional
        Probability of each candidate in random sampling. `prior` is the older spelling.
    default : int or str, optional
        The candidate of the default sample; the first unless given.
    label : str, optional
        Choices of one label are one dimension of the space.

    Raises
    ------
    ValueError
        When there is no candidate or the weights do not fit.
    TypeError
        When a candidate is not a module.

    Examples
    --------
    >>> import hwnas.nn as nn
    >>> choice = nn.LayerChoice({"conv": nn.Conv2d(3, 3, 3), "skip": nn.Identity()}, label="block")
    >>> choice.names
    ['conv', 'skip']
    >>> choice.freeze({"block": "skip"})
    Identity()
    """

    def __init__(
        self,
        candidates: Sequence[nn.Module] | Mapping[str, nn.Module],
        *,
        weights: Sequence[float] | None = None,
        prior: Sequence[float] | None = None,
        default: int | str | None = None,
        label: str | None = None,
    ) -> None:
        super().__init__()
        self.label = resolve_label(label, "layer")
        named = dict(candidates) if isinstance(candidates, Mapping) else dict(enumerate(candidates))
        for name, candidate in named.items():
            if not isinstance(candidate, nn.Module):
                raise TypeError(
                    f"LayerChoice {self.label!r}: candidate {name!r} is {candidate!r}, not a torch.nn.Module"
                )
        self._names: list[Any] = list(named)
        # A list, so that no name can clash with an attribute of the container.
        self.candidates = nn.ModuleList(named.values())
        self._set_choice(given_weights(weights, prior), default)

    def _set_choice(self, weights: Sequence[float] | None, default: int | str | None) -> None:
        options: dict[str, Any] = {} if default is None else {"default": default}
        self.choice = Categorical(self._names, weights=weights, label=self.label, **options)

    @property
    def names(self) -> list[Any]:
        """Names of the candidates: positions or strings, as they stand in samples."""
        return list(self._names)

    def candidate(self, name: int | str) -> nn.Module:
        """Return the candidate that a sample calls `name`."""
        return self.candidates[self._position(name)]

    def _position(self, name: int | str) -> int:
        if name in self._names:
            return self._names.index(name)
        named = all(isinstance(other, str) for other in self._names)
        if named and isinstance(name, int) and -len(self) <= name < len(self):
            return name % len(self)  # candidates with names have positions as well
        raise KeyError(f"LayerChoice {self.label!r} has no candidate {name!r}; its candidates are {self._names}")

    def __getitem__(self, name: int | str) -> nn.Module:
        return self.candidate(name)

    def __setitem__(self, name: int | str, module: nn.Module) -> None:
        self.candidates[self._position(name)] = module

    def __delitem__(self, name: int | str) -> None:
        position = self._position(name)
        if len(self._names) == 1:
            raise ValueError(f"LayerChoice {self.label!r}: its last candidate {name!r} cannot be deleted")
        weights = self.choice.weights
        default = self.choice.default_value()
        del self.candidates[position]
        del self._names[position]
        if weights is not None:
            kept = [weight for i, weight in enumerate(weights) if i != position]
            weights = [weight / sum(kept) for weight in kept] if any(kept) else None
        self._set_choice(weights, default if default in self._names else None)

    def __len__(self) -> int:
        return len(self.candidates)

    def __iter__(self) -> Iterator[nn.Module]:
        return iter(self.candidates)

    def sub_mutables(self, sample: Sample | None = None) -> Iterator[Mutable]:
        """Yield the choice, then what the candidates hold: of the chosen one alone when a sample is given."""
        yield self.choice
        yield from self.registered_mutables()
        if sample is None:
            yield from module_mutables(self.candidates)
        else:
            chosen = self.candidate(sample[self.label])
            if isinstance(chosen, Mutable):
                yield chosen
            else:
                yield from module_mutables(chosen)

    def lower(self, sample: Sample, memo: dict[int, Any]) -> nn.Module:
        """Freeze to the chosen candidate."""
        return freeze_module(self.candidate(sample[self.label]), sample, memo)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the default candidate."""
        return self.candidate(self.choice.default_value())(*args, **kwargs)

    def extra_repr(self) -> str:
        """Show the label and the names."""
        return f"label={self.label!r}, names={self._names}"
