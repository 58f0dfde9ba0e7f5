"""Records behave as dataclasses do: compared with those, of the standard library."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import pytest

from rekernel import records
from rekernel.records import field, record


@record
class Point:
    """With a default of each kind."""

    x: int
    y: int = 2
    names: list[str] = field(default_factory=list)

    @property
    def total(self) -> int:
        """Both."""
        return self.x + self.y


@dataclasses.dataclass(frozen=True, slots=True)
class Model:
    """The same as a dataclass."""

    x: int
    y: int = 2
    names: list[str] = dataclasses.field(default_factory=list)


@record(frozen=False)
class Counter:
    """One that changes."""

    number: int = 0


@record(order=True)
class Version:
    """One of a kind that has an order."""

    major: int
    minor: int


@record
class Nothing:
    """Without any field."""


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ((1,), {}),
        ((1, 3), {}),
        ((1, 3, ["a"]), {}),
        ((), {"x": 1}),
        ((), {"names": ["b"], "x": 1}),
        ((1,), {"names": ["b"]}),
        ((), {}),
        ((1, 2, [], 4), {}),
        ((1,), {"x": 1}),
        ((1,), {"z": 1}),
        ((1, 3, ["a"]), {"y": 4}),
        ((), {"y": 1}),
    ],
)
def test_as_a_dataclass(values: tuple[Any, ...], named: dict[str, Any]) -> None:
    try:
        model = Model(*values, **named)
    except TypeError:
        with pytest.raises(TypeError, match=r"Point\(\) "):
            Point(*values, **named)
        return
    made = Point(*values, **named)
    assert records.asdict(made) == dataclasses.asdict(model)
    assert repr(made) == repr(model).replace("Model", "Point")
    assert made.total == model.x + model.y


def test_each_object_has_its_own_default() -> None:
    assert Point(1).names is not Point(1).names


def test_compared_by_values() -> None:
    assert Point(1) == Point(1, 2)
    assert Point(1) != Point(2)
    others: list[Any] = [Model(1), (1, 2, [])]
    assert Point(1) not in others
    assert Version(1, 9) < Version(2, 0)
    assert sorted([Version(2, 1), Version(1, 5)])[0] == Version(1, 5)
    assert len({Version(1, 2), Version(1, 2), Version(2, 1)}) == 2
    assert Nothing() == Nothing()
    assert len({Nothing(), Nothing()}) == 1
    other: Any = (1, 3)
    with pytest.raises(TypeError):
        assert Version(1, 2) < other


def test_frozen_unless_told() -> None:
    point: Any = Point(1)
    with pytest.raises(AttributeError):
        point.x = 2
    with pytest.raises(AttributeError):
        del point.x
    counter: Any = Counter()
    counter.number += 1
    assert counter == Counter(1)
    with pytest.raises(AttributeError):
        counter.other = 1
    with pytest.raises(TypeError):
        hash(counter)


def test_replaced_and_copied() -> None:
    point = Point(1, names=["a"])
    assert records.replace(point, y=5) == Point(1, 5, ["a"])
    unknown: dict[str, Any] = {"z": 5}
    with pytest.raises(TypeError, match=r"Point\(\) has no z"):
        records.replace(point, **unknown)
    twin = copy.deepcopy(point)
    assert twin == point
    assert twin.names is not point.names


class Pair(NamedTuple):
    """A tuple that cannot be made of a list."""

    one: int
    other: int


def test_as_plain_values() -> None:
    names: Any = [Counter(3), Pair(4, 5), {"a": Version(6, 7)}]
    assert records.asdict(Point(1, names=names)) == {
        "x": 1,
        "y": 2,
        "names": [{"number": 3}, (4, 5), {"a": {"major": 6, "minor": 7}}],
    }


def _own_method() -> None:
    @record
    class Own:
        number: int

        def __post_init__(self) -> None:
            pass


def _of_the_class() -> None:
    @record
    class Limited:
        most: ClassVar[int] = 3


def _shared() -> None:
    @record
    class Shared:
        names: list[str] = []  # noqa: RUF012


def _derived() -> None:
    @record(frozen=False)
    class More(Counter):
        other: int = 0


@pytest.mark.parametrize(
    ("define", "why"),
    [
        (_own_method, "defines __post_init__"),
        (_of_the_class, "most is no field"),
        (_shared, "all objects would share the default of names"),
        (_derived, "Counter is a record"),
    ],
)
def test_what_only_dataclasses_can(define: Callable[[], None], why: str) -> None:
    with pytest.raises(TypeError, match=f"cannot be a record: {why}"):
        define()


def test_fields() -> None:
    assert [(name, item.required) for name, item in records.fields(Point).items()] == [
        ("x", True), ("y", False), ("names", False),
    ]  # fmt: skip
    assert records.is_record(Point)
    assert records.is_record(Point(1))
    assert not records.is_record(Model)
