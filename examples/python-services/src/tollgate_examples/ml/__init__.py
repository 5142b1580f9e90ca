"""Next-hour price estimates."""
