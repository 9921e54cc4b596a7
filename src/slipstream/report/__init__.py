"""From results to charts and tables, and to a page, a live view or figures."""
