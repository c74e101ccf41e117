"""Authenticated connections between machines that share a secret."""
