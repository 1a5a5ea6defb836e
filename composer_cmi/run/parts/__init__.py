"""What a Trainer is made of beside data and algorithms: the classifier and its loss, callbacks, optimizers."""
