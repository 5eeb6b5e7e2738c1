"""How a folder data set is laid out: a folder for each class, or parts, each of which has a folder for each class."""

import itertools
import os
from pathlib import Path

from glyphs.core.errors import DataError
from glyphs.pictures.find import is_folder, is_hidden

PARTS = ("train", "val", "test")
# What people call these, in lower case.
PART_NAMES = {
    "train": ("train", "training", "train_set", "training_set"),
    "val": ("val", "valid", "validation", "val_set", "validation_set"),
    "test": ("test", "testing", "test_set", "testing_set"),
}


def part_folders(data_dir: Path) -> dict[str, Path]:
    """The folders of the parts that a data set comes in, by PARTS; none where it is not divided.

    Raises
    ------
    DataError : two folders are named for the same part, or the folder cannot be read.
    """
    names = folder_names(data_dir)
    parts: dict[str, Path] = {}
    for part in PARTS:
        found = [name for name in names if name.lower() in PART_NAMES[part]]
        # A class may have such a name: a part holds folders.
        found = [name for name in found if folder_names(data_dir / name)]
        if len(found) > 1:
            raise DataError(
                f"{data_dir}: {found[0]} and {found[1]} are names for the same part; join the two, or remove one"
            )
        if found:
            parts[part] = data_dir / found[0]
    return parts if "train" in parts else {}


def class_folders(root: Path) -> list[str]:
    """The names of the class folders in a folder, sorted.

    Raises
    ------
    DataError : there are fewer than two, or they are plainly parts of a data set.
    """
    names = folder_names(root)
    if not names:
        raise DataError(f"{root}: has no folders in it; give it one for each class, with pictures in each")
    if len(names) == 1:
        raise DataError(f"{root}: has one class only, {names[0]}; training tells classes apart: add another folder")
    inside = [(name, set(folder_names(root / name))) for name in names]
    for (one, folders), (other, others) in itertools.pairwise(inside):
        if len(shared := sorted(folders & others)) > 1:
            raise DataError(
                f"{root}: {one} and {other} hold the same folders ({', '.join(shared[:3])}), as parts of a data set "
                "do, not classes; name parts train, val and test, and put each class's pictures into one folder"
            )
    return names


def folder_names(folder: Path) -> list[str]:
    """The names of the folders in a folder, without hidden ones, sorted."""
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.name for entry in entries if is_folder(entry) and not is_hidden(entry))
    except OSError as error:
        raise DataError(f"{folder}: cannot be read ({error.strerror}); name a folder of pictures") from None
