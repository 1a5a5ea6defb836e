"""What a run leaves in its folder, and what is read of it again."""
