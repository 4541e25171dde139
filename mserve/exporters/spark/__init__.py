"""Spark ML and MLlib: directories, read without Java."""
