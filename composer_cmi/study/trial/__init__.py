"""From one's own labelled text to a decision: what helps on these data, by how much, and the recipe of it."""
