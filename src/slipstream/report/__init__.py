"""Result objects to tables and figures."""
