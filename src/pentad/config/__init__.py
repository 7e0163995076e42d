"""Typed settings of a run: the schema, and loading it from YAML with overrides."""
