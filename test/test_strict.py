"""Plain values become dataclasses, or one sentence that names the file and the field."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import pytest

from pixel_perception.strict import build


class Mistake(Exception):
    pass


@dataclass(frozen=True)
class Circle:
    radius: float

    def __post_init__(self):
        if self.radius < 0:
            raise ValueError("a radius below 0")


@dataclass(frozen=True)
class Square:
    side: int = 1


@dataclass(frozen=True)
class Drawing:
    title: str
    shape: Circle | Square = Square()
    frame: Square | None = None
    size: tuple[int, float] = (1, 1.0)
    axes: tuple[int | str, ...] = ()
    pen: Literal["thin", "thick"] = "thin"
    colours: Mapping[str, bool] = field(default_factory=dict)
    notes: dict = field(default_factory=dict)


def read(**values):
    return build(Drawing, {"title": "T", **values}, "file.json", Mistake, "drawing", {"circle": Circle, "square": Square})


def test_every_type_is_read():
    drawing = read(shape={"kind": "circle", "radius": 2}, frame={"side": 3}, size=[4, 5], axes=["n", 3], pen="thick", colours={"red": True},
                   notes={"by": ["me"]})  # fmt: skip
    assert drawing == Drawing("T", Circle(2.0), Square(3), (4, 5.0), ("n", 3), "thick", {"red": True}, {"by": ["me"]})
    assert isinstance(drawing.shape.radius, float) and isinstance(drawing.size[1], float)
    assert read(frame=None) == Drawing("T")


@pytest.mark.parametrize(("change", "complaint"), [
    ({"colour": 1}, "colour: no such field; expected one of title, shape, "),
    ({"title": None}, "title: expected a text, found nothing"),
    ({"shape": {"radius": 2}}, "shape.kind: expected one of circle, square, found nothing"),
    ({"shape": {"kind": ["circle"]}}, "shape.kind: expected one of circle, square, found ['circle']"),
    ({"shape": {"kind": "circle"}}, "shape.radius: is missing"),
    ({"shape": {"kind": "circle", "radius": "2"}}, "shape.radius: expected a number, found '2'"),
    ({"shape": {"kind": "circle", "radius": -1}}, "shape: a radius below 0"),
    ({"shape": 7}, "shape: expected fields with values, found 7"),
    ({"frame": {"side": True}}, "frame.side: expected a whole number, found True"),
    ({"frame": {"side": 1.5}}, "frame.side: expected a whole number, found 1.5"),
    ({"size": [1]}, "size: expected a list of 2, found [1]"),
    ({"size": [1, "x"]}, "size[1]: expected a number, found 'x'"),
    ({"axes": "xy"}, "axes: expected a list, found 'xy'"),
    ({"axes": [1, 2.5]}, "axes[1]: expected a whole number or a text, found 2.5"),
    ({"pen": "red"}, "pen: expected one of thin, thick, found 'red'"),
    ({"colours": {"red": 1}}, "colours.red: expected true or false, found 1"),
    ({"colours": []}, "colours: expected names with values, found []"),
    ({"notes": "none"}, "notes: expected names with values, found 'none'"),
])  # fmt: skip
def test_mistakes_name_file_and_field(change, complaint):
    with pytest.raises(Mistake) as error:
        read(**change)
    assert str(error.value).startswith(f"file.json: drawing.{complaint}")


@pytest.mark.parametrize(("where", "complaint"), [("a.json", "a.json: expected fields with values, found []"),
                                                  ("", "expected fields with values, found []")])  # fmt: skip
def test_a_value_without_a_name(where, complaint):
    with pytest.raises(Mistake) as error:
        build(Square, [], where, Mistake)
    assert str(error.value) == complaint
