"""A small side network beside a frozen base."""
