"""Public functions: signature, docstring, checks, one call."""
