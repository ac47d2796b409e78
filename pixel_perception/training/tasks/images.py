"""Finding an image and learning its size without decoding it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from pixel_perception.training.tasks.fields import Field
from pixel_perception.training.tasks.sample import TaskError


def image_size(path: Path) -> tuple[int, int]:
    """(width, height) from the header. Raises TaskError when there is no such file or it is no image."""
    from PIL import Image

    try:
        with Image.open(path) as picture:
            return picture.size
    except FileNotFoundError:
        raise TaskError(path, "the image is missing") from None
    except (OSError, Image.DecompressionBombError) as error:
        raise TaskError(path, f"expected an image ({error})") from None


def roots(folder: Path, names: Iterable[str]) -> list[Path]:
    """Those of `names` that are folders inside of `folder` or beside it, where several data sets share images."""
    found = [base / name for base in (folder, folder.parent, folder.parent.parent) for name in names if (base / name).is_dir()]
    return [*found, folder]


def locate(name: Field, places: Sequence[Path], names: Sequence[str] = ()) -> Path:
    """The file `name` (or one of `names` instead) in the first of `places` that has it. Raises TaskError for a missing image."""
    for wanted in names or (name.text(),):
        if Path(wanted).is_absolute() or ".." in Path(wanted).parts:
            raise name.wrong("a file name inside the data set's image folder")
        for place in places:
            if (place / wanted).is_file():
                return place / wanted
    where = ", ".join(str(p) for p in places[:3]) + (", ..." if len(places) > 3 else "")
    raise name.wrong(f"an image in {where}", f"{(names or (name.value,))[0]}, which is missing")


def sized(record: Field, path: Path) -> tuple[int, int]:
    """The image's (width, height), which must be what the record says, where it does. Raises TaskError."""
    width, height = image_size(path)
    for key, actual in (("width", width), ("height", height)):
        said = record.get(key)
        if said is not None and said.size() != actual:
            raise said.wrong(f"{actual}, as the image {path.name} is {width}x{height}")
    return width, height
