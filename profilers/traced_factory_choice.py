"""`FactoryChoice` in a trace: candidates that compute the same are one module, for all inputs and in all cells."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch import nn

from hwnas.nn.cell_factory import FactoryChoice
from hwnas.nn.freezing import freeze_module
from hwnas.profilers.alike import arguments_of, structure_of
from hwnas.profilers.tracer import Tracer
from hwnas.space import Sample
from hwnas.supernet import BaseSuperNetModule, MixedFactoryChoice, Mixture


class Candidates:
    """The candidates of all choices of a space: one module for those that compute the same."""

    def __init__(self) -> None:
        self._made: dict[Any, tuple[Any, nn.Module]] = {}
        self._alike: dict[Any, nn.Module] = {}

    def of(self, choice: FactoryChoice) -> list[list[nn.Module]]:
        """Return for each input of a choice the list of its candidates."""
        rows = []
        for source in choice.source.values:
            offered = choice.offer(source)
            rows.append([self._candidate(choice, name, make) for name, make in offered.items()])
            if [source] == choice.source.default_value():
                rows[-1][choice.names.index(choice.choice.default_value())] = self._one(
                    choice, choice.default_operation
                )
        return rows

    def _candidate(self, choice: FactoryChoice, name: int | str, make: Callable[[], Any]) -> nn.Module:
        key = (choice.placed.device, choice.placed.dtype, choice.training, arguments_of(make))
        if key not in self._made:  # what makes it is kept, so that no identity is used twice
            self._made[key] = make, self._one(choice, choice.finish(make, name))
        return self._made[key][1]

    def _one(self, choice: FactoryChoice, module: nn.Module) -> nn.Module:
        return self._alike.setdefault((choice.placed.device, structure_of(module)), module)


class TracedFactoryChoice(MixedFactoryChoice):
    """All candidates on all inputs. The same module on a tensor of the same kind is followed once."""

    _search_machinery = True

    def run_each(self, mixture: Mixture, candidates: Sequence[nn.Module], *args: Any, **kwargs: Any) -> list[Any]:
        """Run the active candidates on one input, or write down again what they ran elsewhere."""
        assert isinstance(self.relaxation, Tracer)
        columns = [self.names.index(name) for name in mixture.values]
        rows: Any = self.made
        row = next(i for i, row in enumerate(rows) if [row[column] for column in columns] == [*candidates])
        outputs = []
        for name, column, candidate in zip(mixture.values, columns, candidates, strict=True):
            with mixture.where(name.__eq__):
                outputs.append(self.relaxation.run(candidate, f"made.{row}.{column}", *args))
        return outputs

    def parameters_held(self) -> Iterator[tuple[str, int | str, int, int]]:
        """Yield for each module of each candidate its path, the name of the candidate, its input, and its size.

        The size is the number of parameters, less those of modules before it in the same candidate.
        """
        for row, source in enumerate(self.source.values):
            for column, name in enumerate(self.names):
                seen: set[int] = set()
                for path, module in self.candidate(name, source).named_modules():
                    own = {id(each): each.numel() for each in module._parameters.values() if each is not None}
                    size = sum(numel for key, numel in own.items() if key not in seen)
                    seen.update(own)
                    if size:
                        yield f"made.{row}.{column}.{path}".rstrip("."), name, source, size

    def lower(self, sample: Sample, memo: dict[int, Any]) -> nn.Module:
        """Freeze to a copy of the chosen candidate, which other choices may have as well."""
        (source,) = sample[self.source.label]
        return freeze_module(self.candidate(sample[self.label], source), sample, {})

    @classmethod
    def mutate(
        cls, module: nn.Module, name: str, memo: dict[str, Any], mutate_kwargs: dict[str, Any]
    ) -> BaseSuperNetModule | bool:
        """Replace a `FactoryChoice`."""
        if not isinstance(module, FactoryChoice) or isinstance(module, BaseSuperNetModule):
            return False
        candidates = memo.setdefault("candidates of cells", Candidates())
        return cls.adopt_made(module, candidates.of(module), mutate_kwargs["relaxation"])
