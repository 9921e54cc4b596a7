"""Several specialists trained together and averaged."""
