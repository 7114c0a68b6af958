"""SPEC.md's machine half: data and records, standard library only."""

SPEC_VERSION = "0.6"
"""Version of SPEC.md that this distribution implements; see CHANGELOG.md."""

__version__ = "0.6.0"
