"""The network, and everything that is a model or its file."""
