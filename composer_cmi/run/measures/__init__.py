"""Loss, score and CMI of the rows that a run passes anyway: those it trains on, and those it is evaluated on."""
