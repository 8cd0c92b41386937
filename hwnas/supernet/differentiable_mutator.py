"""`DifferentiableMutator`: differentiable search inside a training loop of one's own."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from torch import Tensor, nn
from typing_extensions import Self

from hwnas.errors import TrainingError, UnsupportedError
from hwnas.nn import ModelSpace, MutableModule, ValueChoice
from hwnas.nn.holding import attribute_mutables
from hwnas.space import Categorical, CategoricalMultiple, Sample
from hwnas.space.sampling import fresh
from hwnas.supernet.base import BaseSuperNetModule
from hwnas.supernet.hooks import DEFAULT_HOOKS, MutationHook, check_searchable, make_supernet, own_labels
from hwnas.supernet.kept_statistics import kept_statistics
from hwnas.supernet.most_probable import most_probable_members, ranked_options
from hwnas.supernet.sampled_softmax import MAX_LISTED
from hwnas.supernet.softmax import Softmax


class ExpectedCost(Protocol):
    """Whatever knows an expected cost: a `hwnas.profilers.Profiler`, a `hwnas.cost.CostModel`."""

    def expectation(self, probabilities: Mapping[str, Tensor]) -> Tensor:
        """Return the expected cost under independent labels."""
        ...


class ArchParams(nn.ParameterDict):
    """Architecture parameters by `space_id`, which may be any label."""

    def _key_to_attr(self, key: str) -> str:
        # As names of parameters PyTorch takes no dots, and no names that its own methods have.
        return f"alpha {key}".replace(".", "\N{MIDDLE DOT}")


class DifferentiableMutator(nn.Module):
    """Makes a super-net of a model space and holds its architecture parameters; the training loop is the caller's.

    There is one parameter for each `space_id`, which is the label of a choice: choices of one label share it. The
    parameters belong to the mutator and not to the super-net, so each optimiser gets its own::

        mutator.prepare_from_supernet(space)
        weights = torch.optim.SGD(space.parameters(), lr=0.05)
        architecture = torch.optim.Adam(mutator.parameters(), lr=3e-3)

    An architecture step runs inside `architecture_step()`, a step of the weights inside `weight_step()`. Both draw
    anew, which matters to relaxations that sample. For a validation `eval()` makes the super-net compute the member
    that `search_subnet` gives, and `train()` goes back. `state_dict` holds the parameters and how far draws have come,
    so that a search goes on bit for bit.

    Parameters
    ----------
    relaxation : callable, default `Softmax`
        `Softmax`, `GumbelSoftmax`, `BinaryGates`, or another class derived from `Softmax`.
    seed : int, default 0
        Of the initial parameters, of draws, and of `search_subnet` where it has to draw.
    skip : collection of str
        Labels that are not searched. They have no parameter; modules that they decide stay as they are, which is as
        the default value makes them.
    mutation_hooks : sequence of callable
        Tried before all other hooks; see `BaseSuperNetModule.mutate`.
    **options
        Passed to `relaxation`, such as ``temperature=0.5``.

    Attributes
    ----------
    relaxation : Softmax
        What the super-net asks.

    References
    ----------
    Liu, Simonyan, Yang: DARTS: Differentiable Architecture Search, ICLR 2019.

    Examples
    --------
    >>> import torch
    >>> import hwnas.nn as nn
    >>> class Net(nn.ModelSpace):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.layer = nn.LayerChoice({"linear": nn.Linear(2, 2), "tanh": nn.Tanh()}, label="layer")
    ...     def forward(self, x):
    ...         return self.layer(x)
    >>> net, mutator = Net(), DifferentiableMutator()
    >>> mutator.prepare_from_supernet(net)
    >>> {space_id: tuple(parameter.shape) for space_id, parameter in mutator.arch_params.items()}
    {'layer': (2,)}
    >>> optimizer = torch.optim.Adam(mutator.parameters(), lr=0.1)
    >>> with mutator.architecture_step():
    ...     loss = (net(torch.ones(1, 2)) - torch.ones(2).tanh()).square().sum()
    ...     loss.backward()
    ...     optimizer.step()
    >>> mutator.search_subnet()
    {'layer': 'tanh'}
    """

    relaxation: Softmax
    _supernet: ModelSpace | None

    def __init__(
        self,
        relaxation: Callable[..., Softmax] = Softmax,
        *,
        seed: int = 0,
        skip: Collection[str] = (),
        mutation_hooks: Sequence[MutationHook] = (),
        **options: Any,
    ) -> None:
        super().__init__()
        self.seed = seed
        self.skip = frozenset([skip] if isinstance(skip, str) else skip)
        self.mutation_hooks = tuple(mutation_hooks)
        self._make_relaxation = relaxation
        self._options = options
        object.__setattr__(self, "_supernet", None)

    # -- preparing -------------------------------------------------------------------------------------------

    def prepare_from_supernet(self, supernet: ModelSpace) -> None:
        """Build the architecture parameters of a model space and make it a super-net, in place.

        Weights of layers with a choice in their size are made anew, from PyTorch's global generator.

        Parameters
        ----------
        supernet : ModelSpace
            To be changed. Build profilers before.

        Raises
        ------
        RuntimeError
            When this mutator has prepared a super-net before.
        TypeError
            When it is no model space or a super-net already, or a choice is not among listed values.
        ValueError
            When it has no choices, or lacks a label of `skip`.
        UnsupportedError
            When a choice cannot be relaxed. The space is then partly changed.
        """
        self.build_arch_params(supernet)
        self.modify_supernet_forward(supernet)

    def build_arch_params(self, supernet: ModelSpace) -> nn.ParameterDict:
        """Make one architecture parameter for each `space_id`; the first half of `prepare_from_supernet`.

        Returns
        -------
        ParameterDict
            See `arch_params`. Labels of `skip` are not in it.
        """
        if self._supernet is not None:
            raise RuntimeError(
                "this DifferentiableMutator has prepared a super-net already; make a mutator for each super-net"
            )
        check_searchable(supernet)
        dimensions = supernet.simplify()
        if unknown := self.skip.difference(dimensions):
            raise ValueError(f"skip: the space has no labels {sorted(unknown)}; it has {list(map(str, dimensions))}")
        searched = [mutable for label, mutable in dimensions.items() if label not in self.skip]
        if not searched:
            raise ValueError("skip: it holds every label of the space, so there is nothing to search")
        relaxation = self._make_relaxation(searched, seed=self.seed, **self._options)
        if not isinstance(relaxation, Softmax):
            raise TypeError(
                f"relaxation: a {type(relaxation).__name__} has no architecture parameters; use Softmax, "
                "GumbelSoftmax, BinaryGates, or a class derived from them"
            )
        self.relaxation = relaxation
        return self.arch_params

    def modify_supernet_forward(self, supernet: ModelSpace) -> None:
        """Make every choice compute the mixture that its architecture parameter gives, in place.

        The second half of `prepare_from_supernet`.
        """
        relaxation = self._built()
        check_searchable(supernet)
        extra = getattr(supernet, "extra_oneshot_hooks", None)
        hooks = [self._leave_skipped, *self.mutation_hooks, *(extra(self) if extra else ()), *DEFAULT_HOOKS]
        make_supernet(supernet, relaxation, hooks)
        for module in supernet.modules():
            for _, held in attribute_mutables(module):
                if isinstance(held, ValueChoice) and held.label in self.skip:
                    held.read_with(None)
        object.__setattr__(self, "_supernet", supernet)  # not a submodule: its weights are not the architecture

    def _leave_skipped(self, module: nn.Module, name: str, memo: dict[str, Any], mutate_kwargs: dict[str, Any]) -> bool:
        """Keep modules that only skipped labels decide; a mutation hook."""
        if not isinstance(module, MutableModule) or isinstance(module, ModelSpace | BaseSuperNetModule):
            return False
        own = set(own_labels(module))
        if own and own <= self.skip:
            return True
        if left := own & self.skip:
            raise UnsupportedError(
                f"{name}: {type(module).__name__} is decided by {sorted(left)}, which are skipped, and by "
                f"{sorted(own - left)}, which are searched. Skip all of them or none"
            )
        return False

    def _built(self) -> Softmax:
        relaxation = self._modules.get("relaxation")
        if not isinstance(relaxation, Softmax):
            raise RuntimeError("this DifferentiableMutator is not prepared; call prepare_from_supernet(supernet) first")
        return relaxation

    @property
    def supernet(self) -> ModelSpace:
        """The super-net.

        Raises
        ------
        RuntimeError
            When none has been prepared.
        """
        self._built()
        if self._supernet is None:
            raise RuntimeError("the super-net is not bound yet; call modify_supernet_forward(supernet) first")
        return self._supernet

    # -- searching -------------------------------------------------------------------------------------------

    @property
    def arch_params(self) -> nn.ParameterDict:
        """The architecture parameters, logits of shape (number of values,), by `space_id`."""
        relaxation = self._built()
        return ArchParams((str(label), relaxation.alpha(label)) for label in relaxation.dimensions)

    def resample(self) -> Sample:
        """Draw anew.

        Returns
        -------
        dict
            What was drawn; empty where nothing is.
        """
        return self._built().resample({})

    def train(self, mode: bool = True) -> Self:
        """Search, or make the super-net compute the present best member; see `search_subnet`."""
        if not mode:
            best = self.search_subnet()
            self.relaxation.settle({label: best[label] for label in self.relaxation.dimensions})
        return super().train(mode)

    @contextmanager
    def architecture_step(self, model: nn.Module | None = None) -> Iterator[None]:
        """Draw, and inside the block train the architecture and nothing else.

        Weights need no gradient, and running statistics of batch normalisation are as before when the block is left,
        since they are to come from training data alone. Call ``backward`` inside the block.

        Parameters
        ----------
        model : torch.nn.Module, optional
            The model of which the super-net is a part.

        Raises
        ------
        RuntimeError
            In evaluation mode.
        """
        if not self.training:
            raise RuntimeError("the mutator is in evaluation mode, in which nothing is mixed; call train() on it first")
        whole = self.supernet if model is None else model
        with _without_gradient(whole.parameters()), kept_statistics(whole):
            self.resample()
            yield

    @contextmanager
    def weight_step(self) -> Iterator[None]:
        """Draw, and inside the block train weights and not the architecture.

        Relaxations that sample then run no more candidates than the one that was drawn, where they can.
        """
        with _without_gradient(self._built().parameters()):
            self.resample()
            yield

    def probabilities(self) -> dict[str, Tensor]:
        """Return the distribution of each label; differentiable, and free of the noise of draws.

        Returns
        -------
        dict of str to Tensor, shape (number of values,)
            A label of `skip` has its default value with certainty. Choices of several items with more values than can
            be listed are left out.
        """
        relaxation = self._built()
        found: dict[str, Tensor] = {}
        for label, mutable in self.supernet.simplify().items():
            if not isinstance(mutable, Categorical | CategoricalMultiple) or mutable.count_values() > MAX_LISTED:
                continue
            if label in self.skip:
                values = mutable.grid_values()
                certain = [float(value == mutable.default_value()) for value in values]
                found[label] = next(relaxation.parameters()).new_tensor(certain)
            else:
                found[label] = relaxation.probabilities(label)
        return found

    def expected_cost(self, profiler: ExpectedCost) -> Tensor:
        """Return the expected cost of the architecture, in the unit of the profiler.

        Parameters
        ----------
        profiler : Profiler or CostModel
            Of this space, built before it became a super-net.

        Returns
        -------
        Tensor, shape ()
            Exact, with gradients for every architecture parameter.
        """
        return profiler.expectation(self.probabilities())

    def search_subnet(self) -> Sample:
        """Return the most probable sample that satisfies the constraints, the same at every call.

        Returns
        -------
        dict
            A value for each `space_id`; ``supernet.freeze`` makes the plain model of it.

        Raises
        ------
        SampleError
            When no sample satisfies the constraints.
        """
        dimensions = self.supernet.structure().dimensions
        fixed = {str(label): dimensions[label].default_value() for label in dimensions if label in self.skip}
        options = {
            str(label): [(fixed[label], 0.0)] if label in fixed else ranked_options(self.relaxation, label)
            for label in dimensions
        }
        return fresh(next(most_probable_members(self.supernet, options, fixed=fixed, seed=self.seed)))

    # -- going on later --------------------------------------------------------------------------------------

    def get_extra_state(self) -> Any:
        """Return the labels to which the parameters belong."""
        return {"space_ids": [str(label) for label in self._built().dimensions]}

    def set_extra_state(self, state: Mapping[str, Any]) -> None:
        """Check that a state belongs to this space.

        Raises
        ------
        TrainingError
            When it does not.
        """
        here = [str(label) for label in self._built().dimensions]
        if state["space_ids"] != here:
            raise TrainingError(
                f"the state is of a search over the labels {state['space_ids']}, this one is over {here}. Construct "
                "the space and the mutator with the code that the state was made with"
            )


@contextmanager
def _without_gradient(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Compute no gradient of these parameters in the block."""
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
