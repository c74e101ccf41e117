"""Regularizers of a model, as modifiers."""
