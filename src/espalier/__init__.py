"""Espalier post-trains language models; see docs/architecture.md."""

__version__ = "0.1.0"
