"""Models taken apart and side by side."""
