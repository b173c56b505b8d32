"""The registry of formats, and the two questions asked of it: what is this, and how is that written.

To add a format: one file beside this one, one line in FORMATS.
"""
