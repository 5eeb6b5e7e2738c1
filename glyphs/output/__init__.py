"""What comes out: rows, files of results, plots."""
