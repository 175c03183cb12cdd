"""Finds the files of a source, in a folder or an object store, and reads one, in whichever format, as tables of Arrow."""
