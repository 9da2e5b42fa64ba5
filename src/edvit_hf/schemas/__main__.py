"""Rewrites the schema files."""

from edvit_hf.schemas import write_schemas

write_schemas()
