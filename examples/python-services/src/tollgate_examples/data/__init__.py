"""Validation, windows and candles."""
