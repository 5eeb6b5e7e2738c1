"""The settings as flags of a command line, and the scripts' public names."""

import argparse
import dataclasses
import importlib
from collections.abc import Iterable, Mapping
from typing import Any

from glyphs.config import GROUPS, Config


def setting_groups() -> dict[str, list[str]]:
    """The names of all settings, by their groups."""
    fields = dataclasses.fields(Config)
    return {group: [field.name for field in fields if field.metadata["group"] == group] for group in GROUPS}


def add_settings(
    parser: argparse.ArgumentParser, groups: Mapping[str, Iterable[str]], helps: Mapping[str, str] | None = None
) -> None:
    """Add a flag for each Config field: `batch_size` becomes `--batch-size`, a bool gets a `--no-` twin.

    `helps` has other words for settings that mean something else here.  Flags that are not given leave no attribute
    behind, so `given_settings` can tell them from defaults.
    """
    fields = {field.name: field for field in dataclasses.fields(Config)}
    for title, names in groups.items():
        group = parser.add_argument_group(title)
        for name in names:
            field = fields[name]
            metadata = field.metadata
            flag = "--" + (metadata["flag"] or name).replace("_", "-")
            default = field.default
            if default is None:
                default = "all" if metadata["type"] is int else "none"
            options: dict[str, Any] = {"dest": name, "default": argparse.SUPPRESS}
            if metadata["type"] is bool:
                default = "on" if field.default else "off"
                options["action"] = argparse.BooleanOptionalAction
            else:
                options["type"] = metadata["type"]
                if metadata["choices"]:
                    options["choices"] = metadata["choices"]
                else:
                    options["metavar"] = metadata["metavar"]
            group.add_argument(
                flag, help=f"{(helps or {}).get(name, metadata['help'])} (default: {default})", **options
            )


def given_settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """The Config fields whose flags were on the command line."""
    names = {field.name for field in dataclasses.fields(Config)}
    return {name: value for name, value in vars(arguments).items() if name in names}


def import_public(module: str, names: Mapping[str, str], name: str) -> Any:
    """A script's public name, from the module that `names` gives for it; for its module-level `__getattr__`."""
    if name not in names:
        raise AttributeError(f"module {module!r} has no attribute {name!r}")
    return getattr(importlib.import_module(names[name]), name)
