"""The trainer and what it is made of: loss, schedule, early stopping, rate finder, checkpoints."""
