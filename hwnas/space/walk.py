"""Walks over a space under a sample that may still be incomplete.

Which parts of a space are active is known only to the mutables themselves, through ``sub_mutables(sample)``.
A walk therefore hands them a `Partial` sample, which reports the first label that it lacks; the caller
decides that label and walks again. So the labels on which activity or a constraint truly depends are found
without any declaration.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from hwnas.space.mutable import LabeledMutable, Mutable


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


class Structure:
    """The dimensions of a space and where its constraints are, looked up once for many walks.

    Parameters
    ----------
    root : Mutable
        The space.
    """

    def __init__(self, root: Mutable) -> None:
        self.root = root
        self.dimensions: dict[str, LabeledMutable] = root.simplify()
        # The mutable is kept beside what is known about it: an id is unique only among living objects.
        self._known: dict[int, tuple[Mutable, frozenset[str], bool]] = {}

    def _facts(self, mutable: Mutable) -> tuple[Mutable, frozenset[str], bool]:
        facts = self._known.get(id(mutable))
        if facts is None:
            own = mutable.own_label()
            labels = set() if own is None else {own}
            restricted = mutable.is_constraint
            for sub in mutable.sub_mutables():
                _, sub_labels, sub_restricted = self._facts(sub)
                labels |= sub_labels
                restricted |= sub_restricted
            facts = self._known[id(mutable)] = (mutable, frozenset(labels), restricted)
        return facts

    def labels(self, mutable: Mutable) -> frozenset[str]:
        """Return all labels at or below `mutable`, active or not."""
        return self._facts(mutable)[1]

    def restricted(self, mutable: Mutable) -> bool:
        """Tell whether a constraint stands at or below `mutable`, active or not."""
        return self._facts(mutable)[2]

    def dimension(self, label: str) -> LabeledMutable:
        """Return the mutable of a label that a walk asked for."""
        try:
            return self.dimensions[label]
        except KeyError:
            raise LookupError(
                f"a mutable reads label {label!r} from the sample but does not yield it from sub_mutables(); "
                f"the space has the labels {list(self.dimensions)}"
            ) from None

    def constraints(self) -> list[Mutable]:
        """Return all constraints, each once, active or not."""
        found: dict[int, Mutable] = {}

        def collect(mutable: Mutable) -> None:
            if mutable.is_constraint:
                found.setdefault(id(mutable), mutable)
            for sub in mutable.sub_mutables():
                if self.restricted(sub):
                    collect(sub)

        collect(self.root)
        return list(found.values())

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

    def _verdict(self, mutable: Mutable, sample: dict[str, Any]) -> bool | str:
        if not self.restricted(mutable):
            return True
        missing: str | None = None
        try:
            if mutable.is_constraint:
                return mutable.holds(sample)
            for sub in mutable.sub_mutables(sample):
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

    def _settle(self, mutable: Mutable, sample: dict[str, Any]) -> bool:
        own = mutable.own_label()
        if own is not None:
            sample[own]
        for sub in mutable.sub_mutables(sample):
            if not self._settle(sub, sample):
                return False
        return not mutable.is_constraint or mutable.holds(sample)
