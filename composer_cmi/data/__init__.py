"""What a task is, and how its rows are read, checked, cut, tokenised and batched."""
