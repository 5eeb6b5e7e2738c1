"""Forms: printed sheets, scanned pages, boxes, fields."""
