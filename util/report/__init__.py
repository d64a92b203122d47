"""Render the evaluation report as a self-contained HTML page."""
