"""The report of an evaluation as one HTML page that needs no other file."""
