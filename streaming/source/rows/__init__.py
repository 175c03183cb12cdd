"""Rows of a source: each knows its place, is checked, named by its keys, and gets its features and actions."""
