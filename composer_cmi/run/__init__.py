"""One YAML file becomes one training run: configuration, data, models, training, scoring, outputs."""
