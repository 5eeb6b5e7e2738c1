"""What every room stands on: errors, settings, files, text, processes, devices."""
