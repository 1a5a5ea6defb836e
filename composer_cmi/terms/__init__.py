"""The terms themselves, whatever trains the model: what a batch adds to the loss, its unit, its caps, its alarms."""
