"""The tool that builds the reference from docstrings."""
