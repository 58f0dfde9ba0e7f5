"""Plain data from JSON as objects of record classes, by the types of their fields.

Standard library only: the agent reads the manifest with it.
"""

from __future__ import annotations

import functools
import types
import typing
from collections.abc import Callable
from typing import Any

from rekernel.records import fields, is_record


class ShapeError(Exception):
    """The data are not of the wanted shape; the message names the place."""


def build(kind: Any, raw: Any, where: str) -> Any:
    """``raw`` as ``kind``, which is one of the few shapes that the classes above use.

    Raises ShapeError with the place in ``raw`` that does not fit, which is called ``where``.
    """
    try:
        return _builder(kind)(raw)
    except _MisfitError as error:
        raise ShapeError(f"{where}{error.place} {error.words}") from None


class _MisfitError(Exception):
    """What is wrong, and at which place of what is being built."""

    def __init__(self, words: str) -> None:
        super().__init__(words)
        self.words = words
        self.place = ""

    def below(self, place: str) -> _MisfitError:
        """The error, seen from what this is a part of."""
        self.place = place + self.place
        return self


@functools.cache
def _builder(kind: Any) -> Callable[[Any], Any]:
    """Made once for each kind: there are hundreds of objects, and asking for types takes long."""
    origin = typing.get_origin(kind)
    if is_record(kind):
        return _object(typing.cast(type, kind))
    if origin is tuple:
        return _list(typing.get_args(kind)[0])
    if origin is dict:
        return _mapping(typing.get_args(kind)[1])
    if origin is types.UnionType:
        inner = _builder(typing.get_args(kind)[0])
        return lambda raw: None if raw is None else inner(raw)
    return _plain(kind)


def _plain(kind: type) -> Callable[[Any], Any]:
    def build_plain(raw: Any) -> Any:
        # A bool is no int.
        if type(raw) is not kind:
            raise _MisfitError(f"is no {kind.__name__}")
        return raw

    return build_plain


def _object(kind: type) -> Callable[[Any], Any]:
    hints = typing.get_type_hints(kind)
    parts = [(name, _builder(hints[name]), item.required) for name, item in fields(kind).items()]

    def build_object(raw: Any) -> Any:
        if type(raw) is not dict:
            raise _MisfitError("is no object")
        values = {}
        for name, inner, required in parts:
            if name in raw:
                try:
                    values[name] = inner(raw[name])
                except _MisfitError as error:
                    raise error.below(f".{name}") from None
            elif required:
                raise _MisfitError(f"has no {name}")
        return kind(**values)

    return build_object


def _list(kind: Any) -> Callable[[Any], Any]:
    inner = _builder(kind)

    def build_list(raw: Any) -> Any:
        if type(raw) is not list:
            raise _MisfitError("is no list")
        found = []
        try:
            for item in raw:
                found.append(inner(item))
        except _MisfitError as error:
            raise error.below(f"[{len(found)}]") from None
        return tuple(found)

    return build_list


def _mapping(kind: Any) -> Callable[[Any], Any]:
    inner = _builder(kind) if kind is not Any else None

    def build_mapping(raw: Any) -> Any:
        if type(raw) is not dict:
            raise _MisfitError("is no object")
        if inner is None:
            return raw
        found = {}
        for name, value in raw.items():
            try:
                found[name] = inner(value)
            except _MisfitError as error:
                raise error.below(f"[{name!r}]") from None
        return found

    return build_mapping
