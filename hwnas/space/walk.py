"""Walks over a space under a sample that may still be incomplete.

Which parts of a space are active is known only to the mutables themselves, through ``sub_mutables(sample)``.
A walk therefore hands them a `Partial` sample, which reports the first label that it lacks; the caller
decides that label and walks again. So the labels on which activity or a constraint truly depends are found
without any declaration.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

from hwnas.space.node import Dimension, Node, Sample


class Undecided(Exception):  # noqa: N818 - a signal, not an error
    """A walk needs the value of a label that has none yet."""

    def __init__(self, label: str) -> None:
        self.label = label
        super().__init__(f"the value of label {label!r} is needed, but it is not decided")


class UncountableError(ValueError):
    """The values of a dimension, or their combinations, are infinite or too many to enumerate."""


class Partial(dict[str, Any]):
    """A sample under construction: reading a label that it lacks raises `Undecided`."""

    def __missing__(self, key: str) -> NoReturn:
        raise Undecided(key)

    def get(self, key: str, default: Any = None) -> Any:
        """Return the value of `key`; an undecided label must not pass for an absent one."""
        return self[key]

    def __contains__(self, key: object) -> bool:
        if not super().__contains__(key):
            raise Undecided(str(key))
        return True

    def has(self, label: str) -> bool:
        """Tell whether `label` is decided."""
        return super().__contains__(label)


MAX_CASES = 10_000
"""Values of one label for which it is kept what is active; a continuous dimension has more."""


def dimensions(root: Node, is_leaf: Callable[[Node], bool] | None = None) -> dict[str, Dimension]:
    """List the dimensions of a space; see `Mutable.simplify`."""
    found: dict[str, Dimension] = {}
    seen: dict[int, Node] = {}

    def collect(node: Node) -> None:
        if id(node) in seen:
            return
        seen[id(node)] = node
        if isinstance(node, Dimension):
            known = found.setdefault(node.label, node)
            if not known.equals(node):
                raise ValueError(
                    f"two different mutables have the label {node.label!r}: {known!r} and {node!r}. "
                    "Give them different labels, or make them equal to share one choice"
                )
        if is_leaf is not None and is_leaf(node):
            return
        for sub in node.sub_mutables():
            collect(sub)

    collect(root)
    return found


class _Watched(dict[str, Any]):
    """A sample that notes which labels are read, in their order."""

    def __init__(self, sample: Sample) -> None:
        super().__init__()
        self.sample = sample
        self.read: list[str] = []
        self.asked_for_more = False  # for the presence of a label, which is no value

    def __getitem__(self, key: str) -> Any:
        value = self.sample[key]
        if key not in self.read:
            self.read.append(key)
        return value

    def get(self, key: str, default: Any = None) -> Any:
        self.asked_for_more = True
        return self.sample.get(key, default)

    def __contains__(self, key: object) -> bool:
        self.asked_for_more = True
        return key in self.sample


class _Branch:
    """What is active depends on the value of a label."""

    def __init__(self, label: str) -> None:
        self.label = label
        self.cases: dict[Any, _Branch | tuple[Node, ...]] = {}


class Structure:
    """The dimensions of a space, where its constraints are and what is active when, for many walks.

    Everything is asked once of the mutables and kept, so it holds as long as the space does not change.

    Parameters
    ----------
    root : Mutable
        The space.
    """

    def __init__(self, root: Node) -> None:
        self.root = root
        self.dimensions: dict[str, Dimension] = dimensions(root)
        # The mutable is kept beside what is known about it: an id is unique only among living objects.
        self._known: dict[int, tuple[Node, tuple[Node, ...], frozenset[str], bool]] = {}
        self._deciders: dict[int, frozenset[str]] = {}
        self._active: dict[Any, _Branch | tuple[Node, ...]] = {}

    def _facts(self, mutable: Node) -> tuple[Node, tuple[Node, ...], frozenset[str], bool]:
        facts = self._known.get(id(mutable))
        if facts is None:
            own = mutable.own_label()
            labels = set() if own is None else {own}
            restricted = mutable.is_constraint
            subs = tuple(mutable.sub_mutables())
            for sub in subs:
                _, _, sub_labels, sub_restricted = self._facts(sub)
                labels |= sub_labels
                restricted |= sub_restricted
            facts = self._known[id(mutable)] = (mutable, subs, frozenset(labels), restricted)
        return facts

    def parts(self, mutable: Node) -> tuple[Node, ...]:
        """Return what stands directly below `mutable`, active or not."""
        return self._facts(mutable)[1]

    def active(self, mutable: Node, sample: Sample) -> tuple[Node, ...]:
        """Return what stands directly below `mutable` and is active.

        Parameters
        ----------
        mutable : Mutable
            A part of the space.
        sample : dict
            Values that are valid; a `Partial` sample raises `Undecided` where one is missing.

        Returns
        -------
        tuple of Mutable
            What ``mutable.sub_mutables(sample)`` yields.
        """
        self._facts(mutable)  # keeps it alive, so that its id stays its own
        known = self._active.get(id(mutable))
        while isinstance(known, _Branch):
            known = known.cases.get(_key(sample[known.label]))
        return self._learn(mutable, sample) if known is None else known

    def _learn(self, mutable: Node, sample: Sample) -> tuple[Node, ...]:
        watched = _Watched(sample)
        subs = tuple(mutable.sub_mutables(watched))
        for sub in subs:
            self._facts(sub)
        if watched.asked_for_more:
            return subs
        place: dict[Any, _Branch | tuple[Node, ...]] = self._active
        key: Any = id(mutable)
        for label in watched.read:
            branch = place.setdefault(key, _Branch(label))
            if not isinstance(branch, _Branch) or branch.label != label or len(branch.cases) >= MAX_CASES:
                return subs  # it reads in an order that is not fixed, or from a continuous dimension
            place, key = branch.cases, _key(watched.sample[label])
        place.setdefault(key, subs)
        return subs

    def labels(self, mutable: Node) -> frozenset[str]:
        """Return all labels at or below `mutable`, active or not."""
        return self._facts(mutable)[2]

    def restricted(self, mutable: Node) -> bool:
        """Tell whether a constraint stands at or below `mutable`, active or not."""
        return self._facts(mutable)[3]

    def deciders(self, mutable: Node) -> frozenset[str]:
        """Return the labels whose values decide what is active below `mutable`, or whether a constraint holds."""
        known = self._deciders.get(id(mutable))
        if known is None:
            found: set[str] = set()
            if mutable.is_constraint:
                found.update(self.labels(mutable))
            else:
                self._explore(mutable, {}, found)
            for sub in self.parts(mutable):
                found |= self.deciders(sub)
            known = self._deciders[id(mutable)] = frozenset(found)
        return known

    def _explore(self, mutable: Node, decided: Sample, found: set[str]) -> None:
        """Note which labels `mutable` reads to tell what is active, whatever their values are."""
        try:
            self.active(mutable, Partial(decided))
        except Undecided as need:
            found.add(need.label)
            for value in self.dimension(need.label).grid_values():
                self._explore(mutable, {**decided, need.label: value}, found)

    def dimension(self, label: str) -> Dimension:
        """Return the mutable of a label that a walk asked for."""
        try:
            return self.dimensions[label]
        except KeyError:
            raise LookupError(
                f"a mutable reads label {label!r} from the sample but does not yield it from sub_mutables(); "
                f"the space has the labels {list(self.dimensions)}"
            ) from None

    def constraints(self) -> list[Node]:
        """Return all constraints, each once, active or not."""
        found: dict[int, Node] = {}

        def collect(mutable: Node) -> None:
            if mutable.is_constraint:
                found.setdefault(id(mutable), mutable)
            for sub in self.parts(mutable):
                if self.restricted(sub):
                    collect(sub)

        collect(self.root)
        return list(found.values())

    def admits(self, sample: Sample) -> bool:
        """Tell whether a sample has a valid value for every label and meets the constraints."""
        for label, dimension in self.dimensions.items():
            if label not in sample or dimension.check_value(sample[label]) is not None:
                return False
        return self.verdict(sample) is True

    def verdict(self, sample: dict[str, Any]) -> bool | str:
        """Say whether the active constraints hold.

        Parameters
        ----------
        sample : dict
            A sample, or a `Partial` one.

        Returns
        -------
        bool or str
            True: all hold, whatever is undecided. False: one is violated, whatever is undecided. Otherwise
            the first label that must be decided to know more.
        """
        return self._verdict(self.root, sample)

    def _verdict(self, mutable: Node, sample: dict[str, Any]) -> bool | str:
        if not self.restricted(mutable):
            return True
        missing: str | None = None
        try:
            if mutable.is_constraint:
                return mutable.holds(sample)
            for sub in self.active(mutable, sample):
                answer = self._verdict(sub, sample)
                if answer is False:
                    return False
                if isinstance(answer, str) and missing is None:
                    missing = answer
        except Undecided as need:
            missing = missing or need.label
        return True if missing is None else missing

    def settle(self, sample: dict[str, Any]) -> bool | str:
        """As `verdict`, but every active label must be decided as well."""
        try:
            return self._settle(self.root, sample)
        except Undecided as need:
            return need.label

    def _settle(self, mutable: Node, sample: dict[str, Any]) -> bool:
        own = mutable.own_label()
        if own is not None:
            sample[own]
        for sub in self.active(mutable, sample):
            if not self._settle(sub, sample):
                return False
        return not mutable.is_constraint or mutable.holds(sample)


def _key(value: Any) -> Any:
    return tuple(value) if type(value) is list else value
