"""Rows by the million: text in Arrow, files in pieces, tokens in mapped files, one copy for all ranks of a machine."""
