"""A metric module for `evaluate`: a second opinion on our own scores."""
