"""Reading characters and texts with a trained model."""
