"""Measurements of jxent beside its peers; one module a question."""
