"""Zip archives, read as their strictest reader reads them."""
