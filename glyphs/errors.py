"""The one family of errors that a user can mend; `glyphs.process.run` prints them as one line, exit status 2."""


class GlyphError(Exception):
    """Something the user can mend: the message names the path, the fact and the remedy."""


class ConfigError(GlyphError):
    """A setting, or a combination of settings, that cannot work."""


class DataError(GlyphError):
    """A data file that is missing, damaged or contradicts another."""


class CheckpointError(GlyphError):
    """A checkpoint that is missing, damaged, not ours, or contradicts what it is used with."""


class TrainingError(GlyphError):
    """Training cannot go on: a loss that is not finite, or no memory left on the device."""


class PictureError(GlyphError):
    """A picture that cannot be read."""
