"""Labels: the names of the dimensions of a space, written as paths such as ``stem/act``.

A label belongs to the scope in which it was made. Automatic labels count from 1 at every entry of a scope, so
building the same thing twice gives the same labels.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field


class Label(str):
    """A label that is already a full path: no scope is put before it.

    `resolve_label` and `auto_label` return this type, so a label read from one mutable can be given to
    another one, inside any scope, and both then share the choice.
    """

    __slots__ = ()


@dataclass
class _Scope:
    path: str
    counters: dict[str, int] = field(default_factory=dict)

    def next_name(self, kind: str) -> str:
        self.counters[kind] = self.counters.get(kind, 0) + 1
        return f"{kind}_{self.counters[kind]}"

    def join(self, name: str) -> Label:
        return Label(f"{self.path}/{name}" if self.path else name)


# Outside every scope the counter belongs to the process: those labels are unique, but depend on what was made
# before.
_OUTSIDE = _Scope("")
_current: ContextVar[_Scope] = ContextVar("hwnas_label_scope", default=_OUTSIDE)


def check_label(label: str) -> None:
    """Raise unless `label` is a path of non-empty pieces.

    Raises
    ------
    TypeError
        If `label` is no string.
    ValueError
        If `label` is empty, starts or ends with ``/``, or holds ``//``.
    """
    if not isinstance(label, str):
        raise TypeError(f"a label must be a string, got {label!r} of type {type(label).__name__}")
    if not all(label.split("/")):
        problem = "is empty" if not label else "has a stray '/'"
        raise ValueError(f"label {label!r} {problem}; write a name such as 'act' or a path such as 'stem/act'")


def current_scope() -> str:
    """Return the path of the innermost label scope, ``""`` outside every scope."""
    return _current.get().path


def auto_label(kind: str) -> Label:
    """Make the next automatic label of a kind in the current scope.

    Parameters
    ----------
    kind : str
        What is labelled, for example ``"layer"``.

    Returns
    -------
    Label
        For example ``net/layer_1``. Outside every scope the counter is shared by the whole process.
    """
    check_label(kind)
    scope = _current.get()
    return scope.join(scope.next_name(kind))


def resolve_label(label: str | None, kind: str) -> Label:
    """Turn what a user gave as label into a full path.

    Parameters
    ----------
    label : str or None
        A name relative to the current scope, a `Label` (kept as it is), or None for an automatic label.
    kind : str
        The kind for an automatic label.

    Returns
    -------
    Label
        The full path.

    Raises
    ------
    ValueError
        If the label is empty or has a stray ``/``.
    """
    if label is None:
        return auto_label(kind)
    check_label(label)
    return label if isinstance(label, Label) else _current.get().join(label)


@contextmanager
def label_scope(name: str) -> Iterator[Label]:
    """Put a path before all labels that are made inside the ``with`` block.

    Scopes nest: ``b`` inside ``a`` is ``a/b``. The automatic counters restart at every entry, so entering a
    scope of one name twice makes the same labels twice.

    Parameters
    ----------
    name : str
        Name of the scope; a `Label` stands for a full path.

    Yields
    ------
    Label
        The full path of the scope.

    Raises
    ------
    ValueError
        If the name is empty or has a stray ``/``.
    """
    path = resolve_label(name, "scope")
    token = _current.set(_Scope(path))
    try:
        yield path
    finally:
        _current.reset(token)


@contextmanager
def root_scope(name: str | None = None) -> Iterator[None]:
    """Open the scope in which a whole space is constructed.

    Parameters
    ----------
    name : str, optional
        With a name it is `label_scope`. Without one, labels get no prefix and the counters start at 1; inside
        another scope nothing changes, so a space nested in another one goes on with the counters of that one.

    Raises
    ------
    ValueError
        If the name is empty or has a stray ``/``.
    """
    if name is not None:
        with label_scope(name):
            yield
    elif _current.get() is not _OUTSIDE:
        yield
    else:
        token = _current.set(_Scope(""))
        try:
            yield
        finally:
            _current.reset(token)
