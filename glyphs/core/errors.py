"""The one family of errors that a user can mend; `glyphs.core.process.run` prints them as one line, exit status 2."""

MOST_CHARACTERS = 800  # of a message; the middle of a longer one, which quotes a file, is left out


class GlyphError(Exception):
    """Something the user can mend: the message names the path, the fact and the remedy."""

    def __str__(self) -> str:
        message = super().__str__()
        if len(message) <= MOST_CHARACTERS:
            return message
        # The path stands at the front, the remedy at the end.
        return f"{message[: MOST_CHARACTERS * 3 // 4]} ... {message[-(MOST_CHARACTERS // 4) :]}"


class ConfigError(GlyphError):
    """A setting, or a combination of settings, that cannot work."""


class SettingError(ConfigError):
    """A setting that has a wrong value: its name, and the fact, apart, since a flag may have another name."""

    def __init__(self, setting: str, fact: str) -> None:
        super().__init__(f"{setting} {fact}")
        self.setting = setting
        self.fact = fact


class DataError(GlyphError):
    """A data file that is missing, damaged or contradicts another."""


class CheckpointError(GlyphError):
    """A checkpoint that is missing, damaged, not ours, or contradicts what it is used with."""


class TrainingError(GlyphError):
    """Training cannot go on: a loss that is not finite, or no memory left on the device."""


class PictureError(GlyphError):
    """A picture that cannot be read."""
