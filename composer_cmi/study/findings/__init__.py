"""From run folders to a report: what paired runs can prove, tables and pictures."""
