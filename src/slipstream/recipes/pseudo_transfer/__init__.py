"""Transfer without the source's data: pseudo pre-training and pseudo semi-supervision."""
