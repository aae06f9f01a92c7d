"""Splits: one public model name that stands for several variants, by weight."""
