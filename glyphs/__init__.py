"""Enhanced Glyph Recognition: train, evaluate and use recognisers of handwritten characters."""
