"""Data sets in other formats, as COCO's annotation files."""
