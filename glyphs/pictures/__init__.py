"""From a picture to EMNIST's form: decoding, finding files, one glyph, a page of text."""
