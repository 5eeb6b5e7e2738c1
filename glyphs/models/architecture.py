"""The network that the settings name: this project's own, or one that a function of the user's makes."""

import difflib
import functools
import importlib
import inspect
import sys
from pathlib import Path

from torch import nn

from glyphs.core.config import Config
from glyphs.core.errors import CheckpointError, ConfigError
from glyphs.models.network import EnhancedGlyphCNN
from glyphs.pictures.plain import form_of

TIMM = "timm"


def make_model(config: Config, num_classes: int) -> nn.Module:
    """The network for so many classes, with random weights.

    Where the settings name an `arch`, module:callable, that is imported, from the folder of the moment too, and called
    with the number of classes and, by name, with all settings; `timm:NAME` is timm's network of that name.  It makes a
    module from images, float [N, 1, H, W] in [0, 1], or [N, 3, H, W] where the setting `color` is "on", to logits
    [N, num_classes].

    Raises
    ------
    ConfigError : `arch` cannot be imported, cannot be called so, or makes something else.
    """
    if config.arch is None:
        channels = form_of(config.to_dict()).shape[0]
        return EnhancedGlyphCNN(num_classes, config.dropout_rate, config.use_residual, channels=channels)
    name, _, function = config.arch.partition(":")
    if name == TIMM:
        return make_timm(function, config, num_classes)
    if not {"", str(Path.cwd())} & set(sys.path):
        sys.path.append(str(Path.cwd()))  # where `python -m` would look, too
    try:
        module = importlib.import_module(name)
    except ImportError as error:
        raise ConfigError(
            f"--arch {config.arch}: cannot be imported ({error}); call the program where {name}.py is, or install it"
        ) from None
    factory = getattr(module, function, None)
    settings = config.to_dict()
    try:
        inspect.signature(factory).bind(num_classes, **settings)  # type: ignore[arg-type]
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"--arch {config.arch}: is no function f(num_classes, **settings) ({error}); write one in {name}"
        ) from None
    assert factory is not None
    model = factory(num_classes, **settings)
    if not isinstance(model, nn.Module):
        raise ConfigError(f"--arch {config.arch}: makes a {type(model).__name__}; it must make a torch.nn.Module")
    if hasattr(model, "temperature"):
        raise ConfigError(
            f"--arch {config.arch}: its network has a `temperature`, under which calibration keeps its own; rename it"
        )
    return model


def make_timm(name: str, config: Config, num_classes: int) -> nn.Module:
    """A network of timm's (https://github.com/huggingface/pytorch-image-models) for these classes and images.

    Its weights are random: a function of one's own, as `--arch` names it, can begin with those that one has.
    """
    try:
        import timm
    except ImportError:
        raise ConfigError(f"--arch {config.arch}: needs timm: pip install timm") from None
    channels, size, _ = form_of(config.to_dict()).shape
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), 3)
        remedy = f"; try {', '.join(near)}" if near else ""
        raise ConfigError(f"--arch {config.arch}: timm has no such network{remedy}")
    make = functools.partial(timm.create_model, name, num_classes=num_classes, in_chans=channels)
    try:
        model: nn.Module = make(img_size=size)
    except TypeError:  # it takes images of any size
        model = make()
    return model


def require_arch(declared: str | None, given: str | None, path: Path) -> None:
    """Raise CheckpointError where a checkpoint's network is code that the caller has not named: no file runs code."""
    if declared is None or declared == given:
        return
    if given is None:
        raise CheckpointError(
            f"{path}: its network is made by {declared}, code that a checkpoint does not run by itself; if you trust "
            f"it, add --arch {declared}"
        )
    raise CheckpointError(f"{path}: its network is made by {declared}, not by {given}; add --arch {declared} instead")
