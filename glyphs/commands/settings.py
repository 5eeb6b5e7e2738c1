"""The settings as flags of a command line, and the scripts' public names."""

import argparse
import contextlib
import dataclasses
import difflib
import importlib
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import glyphs
from glyphs.core.config import GROUPS, Config
from glyphs.core.errors import CheckpointError, ConfigError, SettingError
from glyphs.core.text import one_line


class Parser(argparse.ArgumentParser):
    """A parser that answers a mistake by one line, which names the flag that was probably meant."""

    def __init__(self, description: str | None) -> None:
        super().__init__(
            description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
        )
        self.add_argument("--version", action=ShowVersion, nargs=0, default=argparse.SUPPRESS, help="show it and exit")

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        # Before all else: that a required argument is missing says nothing to someone who mistyped it.
        args = sys.argv[1:] if args is None else list(args)
        for argument in args[: args.index("--")] if "--" in args else args:
            flag = argument.partition("=")[0]
            if flag.startswith("--") and flag not in self._option_string_actions:
                near = difflib.get_close_matches(flag, self._option_string_actions, 1)
                self.error(f"there is no {flag}" + (f"; did you mean {near[0]}?" if near else ""))
        return super().parse_known_args(args, namespace)

    def print_help(self, file: Any = None) -> None:
        print(self.format_help(), end="", file=file)  # argparse's own says nothing where it cannot be written

    def error(self, message: str) -> NoReturn:
        self.exit(2, one_line(f"error: {message} (--help lists all flags)") + "\n")


class ShowVersion(argparse.Action):
    """argparse's own says nothing where the version cannot be written."""

    def __call__(self, parser: argparse.ArgumentParser, *arguments: Any) -> NoReturn:
        print(f"glyphs {glyphs.__version__}")
        parser.exit()


def flag_of(name: str) -> str:
    """The flag of a setting: `--split` of `emnist_split`."""
    [field] = [field for field in dataclasses.fields(Config) if field.name == name]
    return "--" + (field.metadata["flag"] or name).replace("_", "-")


def as_flags(settings: Mapping[str, Any]) -> str:
    """The settings as they would stand on a command line: `--batch-size 32 --no-use-residual`."""
    flags = []
    for name, value in settings.items():
        flag = flag_of(name)
        flags.append((flag if value else f"--no-{flag[2:]}") if isinstance(value, bool) else f"{flag} {value}")
    return " ".join(flags)


@contextlib.contextmanager
def naming_flags(names: Iterable[str]) -> Iterator[None]:
    """Where a setting of these names, which came from the command line, cannot be, call it as it was called there."""
    try:
        yield
    except SettingError as error:
        if error.setting not in names:
            raise
        raise ConfigError(f"{flag_of(error.setting)} {error.fact}") from None


def config_of(given: Mapping[str, Any], flags: Iterable[str]) -> Config:
    """The settings that were given, with the defaults of the others; `flags` are those of the command line."""
    with naming_flags(flags):
        return Config.from_dict(given)


def require_models(*paths: Path | None) -> None:
    """Raise CheckpointError where a model's file is missing: here, before the imports that reading it takes."""
    for path in paths:
        if path is not None and not path.exists():
            kind, remedy = ("model", "make one by --export") if path.suffix == ".onnx" else ("checkpoint", "train one")
            raise CheckpointError(f"{path}: there is no such {kind}; check the path, or {remedy}")


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
            default = field.default
            if default is None:
                default = metadata["unset"]
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
            help = (helps or {}).get(name, metadata["help"])
            group.add_argument(flag_of(name), help=f"{help} (default: {default})", **options)


def given_settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """The Config fields whose flags were on the command line."""
    names = {field.name for field in dataclasses.fields(Config)}
    return {name: value for name, value in vars(arguments).items() if name in names}


def import_public(module: str, names: Mapping[str, str], name: str) -> Any:
    """A script's public name, from the module that `names` gives for it; for its module-level `__getattr__`."""
    if name not in names:
        raise AttributeError(f"module {module!r} has no attribute {name!r}")
    return getattr(importlib.import_module(names[name]), name)
