"""From a study's file to finished run folders: plan, processes, progress."""
