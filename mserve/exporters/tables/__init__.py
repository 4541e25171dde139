"""Lookup tables: keys to rows, from files of columns."""
