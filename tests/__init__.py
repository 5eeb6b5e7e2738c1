"""The tests run as the scripts do; this comes before torch and onnxruntime are imported."""

from glyphs.core.process import set_up

set_up()
