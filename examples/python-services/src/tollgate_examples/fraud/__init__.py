"""Risk score of a payment."""
