"""Experiments: comparisons and ablations of recipes, baselines, scenarios and diagnostics, with their tables."""
