"""Searching large scopes on a GPU: the extra ``[gpu]``."""
