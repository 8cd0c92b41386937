"""Lists and dicts of mutables that are one mutable."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from hwnas.space.mutable import Mutable
from hwnas.space.node import Sample


class MutableList(Mutable):
    """A list of mutables; it freezes to the list of their values.

    Parameters
    ----------
    items : iterable of Mutable
        The mutables.
    """

    def __init__(self, items: Iterable[Mutable] = ()) -> None:
        self._items = [_checked(item, str(place)) for place, item in enumerate(items)]

    def sub_mutables(self, sample: Sample | None = None) -> Iterator[Mutable]:
        """Yield the items."""
        yield from self._items

    def path_piece(self, sub: Mutable) -> str:
        """Return the place of an item."""
        return next((str(place) for place, item in enumerate(self._items) if item is sub), "")

    def freeze(self, sample: Sample) -> list[Any]:
        """Return the list of the frozen items."""
        self.validate(sample)
        return [item.freeze(sample) for item in self._items]

    def __len__(self) -> int:
        """Return the number of items."""
        return len(self._items)

    def __iter__(self) -> Iterator[Mutable]:
        """Iterate over the items."""
        return iter(self._items)

    def __getitem__(self, place: int) -> Mutable:
        """Return the item at a place."""
        return self._items[place]

    def __repr__(self) -> str:
        """Return the items."""
        return f"MutableList({self._items!r})"


class MutableDict(Mutable):
    """A dict of mutables; it freezes to the dict of their values.

    Parameters
    ----------
    items : mapping of str to Mutable
        The mutables by key. Keys do not enter the labels.
    """

    def __init__(self, items: Mapping[str, Mutable] | None = None) -> None:
        self._items = {key: _checked(item, key) for key, item in (items or {}).items()}

    def sub_mutables(self, sample: Sample | None = None) -> Iterator[Mutable]:
        """Yield the items."""
        yield from self._items.values()

    def path_piece(self, sub: Mutable) -> str:
        """Return the key of an item."""
        return next((key for key, item in self._items.items() if item is sub), "")

    def freeze(self, sample: Sample) -> dict[str, Any]:
        """Return the dict of the frozen items."""
        self.validate(sample)
        return {key: item.freeze(sample) for key, item in self._items.items()}

    def __len__(self) -> int:
        """Return the number of items."""
        return len(self._items)

    def __iter__(self) -> Iterator[str]:
        """Iterate over the keys."""
        return iter(self._items)

    def __getitem__(self, key: str) -> Mutable:
        """Return the item of a key."""
        return self._items[key]

    def __repr__(self) -> str:
        """Return the items."""
        return f"MutableDict({self._items!r})"


def _checked(item: Any, place: str) -> Mutable:
    if not isinstance(item, Mutable):
        raise TypeError(f"item {place!r} must be a Mutable, got {item!r} of type {type(item).__name__}")
    return item
