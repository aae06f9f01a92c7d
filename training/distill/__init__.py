"""Distillation: a pruned model trained on what the whole one says."""
