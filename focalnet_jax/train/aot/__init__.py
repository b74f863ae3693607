"""Compiling ahead of time, for devices that aren't here."""
