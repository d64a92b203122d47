"""The report of an evaluation as one HTML page that needs no other file."""

from .page import make_page

__all__ = ["make_page"]
