"""Turns values of files, JSON and requests into columns of features."""
