"""Reading with a trained model: predictor, text, rows of results, service."""
