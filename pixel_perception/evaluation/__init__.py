"""Metrics, reports and comparisons with reference numbers."""
