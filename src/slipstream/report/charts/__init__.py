"""From result objects to charts, tables and notes: a module for each kind of result."""
