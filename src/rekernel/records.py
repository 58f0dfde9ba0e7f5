"""Small classes that hold named values: what dataclasses do, without compiling code for each.

A dataclass writes the source of its methods and compiles it whenever its module is imported. The
agent defines some thirty classes while everything stands still: half of the time that its imports
take would go there (49 ms instead of 25 ms natively, twenty times that when emulated).
Types are checked as those of dataclasses are (typing.dataclass_transform); what those have and
these have not is refused when the class is made.
"""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter
from typing import TYPE_CHECKING, Any, TypeVar, dataclass_transform, overload

_Kind = TypeVar("_Kind", bound=type)

# Of a class: its fields, by name.
_FIELDS = "__record_fields__"
_REQUIRED: Any = object()
# A class that defines one of these means a dataclass.
_UNKNOWN = ("__init__", "__post_init__", "__eq__", "__hash__", "__repr__", "__lt__", "__slots__")


class Field:
    """``default`` of a field, or what makes it for each object; neither if it must be given."""

    __slots__ = ("default", "default_factory")

    def __init__(self, default: Any, default_factory: Callable[[], Any] | None) -> None:
        self.default = default
        self.default_factory = default_factory

    @property
    def required(self) -> bool:
        """Whether an object cannot be made without it."""
        return self.default is _REQUIRED and self.default_factory is None


def field(*, default_factory: Callable[[], Any]) -> Any:
    """A field whose default is made anew for each object."""
    return Field(_REQUIRED, default_factory)


@overload
def record(cls: _Kind, /) -> _Kind: ...
@overload
def record(*, frozen: bool = True, order: bool = False) -> Callable[[_Kind], _Kind]: ...
@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def record(cls: Any = None, /, *, frozen: bool = True, order: bool = False) -> Any:
    """Make a class with annotated fields one whose objects hold just these.

    They are compared, and hashed if ``frozen``, by their values; with ``order`` sorted as well.
    Raises TypeError for a class with methods of its own for that, with a base that is a record, or
    with a default that objects would share.
    """
    if cls is None:
        return lambda kind: _make(kind, frozen=frozen, order=order)
    return _make(cls, frozen=frozen, order=order)


def _make(cls: type, *, frozen: bool, order: bool) -> type:
    content = dict(cls.__dict__)
    annotations = cls.__annotations__
    found: dict[str, Field] = {}
    for name in annotations:
        default = content.pop(name, _REQUIRED)
        found[name] = default if type(default) is Field else Field(default, None)
    _refuse_what_is_unknown(cls, found)
    for name in ("__dict__", "__weakref__"):
        content.pop(name, None)
    names = tuple(annotations)
    content |= {
        "__annotations__": annotations,
        "__qualname__": cls.__qualname__,
        "__slots__": names,
        "__match_args__": names,
        "__repr__": _represent,
        "__reduce__": _reduce,
        _FIELDS: found,
    }
    if frozen:
        content |= {"__setattr__": _refuse, "__delattr__": _refuse}
    made = type(cls)(cls.__name__, cls.__bases__, content)
    _add_methods(made, found, frozen=frozen, order=order)
    return made


def _refuse_what_is_unknown(cls: type, found: dict[str, Field]) -> None:
    problems = [f"defines {name}" for name in _UNKNOWN if name in cls.__dict__]
    problems += [f"{base.__name__} is a record" for base in cls.__bases__ if is_record(base)]
    for name, item in found.items():
        if "ClassVar" in str(cls.__annotations__[name]):
            problems.append(f"{name} is no field")
        # As those that can be changed are.
        if type(item.default).__hash__ is None:
            problems.append(f"all objects would share the default of {name}")
    if problems:
        raise TypeError(f"{cls.__name__} cannot be a record: {', '.join(problems)}")


def _add_methods(made: Any, found: dict[str, Field], *, frozen: bool, order: bool) -> None:
    """What is another function for each class."""
    names = tuple(found)
    count = len(names)
    # Past __setattr__, which may refuse.
    setters = [made.__dict__[name].__set__ for name in names]

    def initialise(self: Any, *values: Any, **named: Any) -> None:
        if named or len(values) != count:
            values = _complete(made.__name__, found, values, named)
        for setter, value in zip(setters, values, strict=True):
            setter(self, value)

    made.__init__ = initialise
    # Of one name it is the value, else a tuple; of none there is no getter.
    values_of: Callable[[Any], Any] = attrgetter(*names) if names else lambda _: ()

    def equal(self: Any, other: Any) -> Any:
        if other.__class__ is not self.__class__:
            return NotImplemented
        return values_of(self) == values_of(other)

    made.__eq__ = equal
    made.__hash__ = (lambda self: hash(values_of(self))) if frozen else None
    if order:
        # sorted(), min() and max() ask for no other.
        made.__lt__ = lambda self, other: (
            bool(values_of(self) < values_of(other))
            if other.__class__ is self.__class__
            else NotImplemented
        )


def _complete(
    name: str, found: dict[str, Field], values: tuple[Any, ...], named: dict[str, Any]
) -> tuple[Any, ...]:
    """The values of all fields in their order. Raises TypeError as a call with such would."""
    if len(values) > len(found):
        raise TypeError(f"{name}() takes {len(found)} values, {len(values)} were given")
    complete = list(values)
    given = 0
    for position, (key, item) in enumerate(found.items()):
        if key in named:
            if position < len(values):
                raise TypeError(f"{name}() got {key!r} twice")
            given += 1
            complete.append(named[key])
        elif position >= len(values):
            if item.default_factory is not None:
                complete.append(item.default_factory())
            elif item.default is not _REQUIRED:
                complete.append(item.default)
            else:
                raise TypeError(f"{name}() needs {key!r}")
    if given != len(named):
        unknown = sorted(named.keys() - found.keys())
        raise TypeError(f"{name}() has no {', '.join(unknown)}")
    return tuple(complete)


def _represent(self: Any) -> str:
    values = ", ".join(f"{name}={getattr(self, name)!r}" for name in fields(self))
    return f"{type(self).__qualname__}({values})"


def _reduce(self: Any) -> tuple[type, tuple[Any, ...]]:
    """For copy: as it may be frozen it is made whole."""
    return type(self), tuple(getattr(self, name) for name in fields(self))


def _refuse(self: Any, name: str, value: Any = None) -> None:
    raise AttributeError(f"{type(self).__name__} is frozen: {name}")


def is_record(kind: Any) -> bool:
    """Whether it is a class of records, or one of its objects."""
    return hasattr(kind, _FIELDS)


def fields(kind: Any) -> dict[str, Field]:
    """The fields of a class of records, or of an object, by name in their order."""
    found: dict[str, Field] = getattr(kind, _FIELDS)
    return found


if TYPE_CHECKING:
    # Names and types of the changes are checked only of this one.
    from dataclasses import replace as replace
else:

    def replace(item: Any, /, **changes: Any) -> Any:
        """A record like this one, but for these values. Raises TypeError for another name."""
        return type(item)(**{name: getattr(item, name) for name in fields(item)} | changes)


def asdict(item: Any) -> dict[str, Any]:
    """The values of a record by name; records in it, in its lists and mappings, likewise."""
    return {name: _plain(getattr(item, name)) for name in fields(item)}


def _plain(value: Any) -> Any:
    if is_record(value):
        return asdict(value)
    if isinstance(value, (list, tuple)):
        plain = [_plain(one) for one in value]
        return plain if isinstance(value, list) else tuple(plain)
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    return value
