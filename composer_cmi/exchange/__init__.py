"""What a finished model gives to the world, and what comes in from it: predictions, pushes, others' answers."""
