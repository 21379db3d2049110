"""A run as one self-contained HTML file with a token explorer. Reads records only; nothing here needs a model."""

from layerlens.report.page import explorer_html, write_report

__all__ = ["explorer_html", "write_report"]
