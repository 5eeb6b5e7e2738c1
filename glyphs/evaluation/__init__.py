"""What a model is worth: evaluator, metrics, reports, calibration."""
