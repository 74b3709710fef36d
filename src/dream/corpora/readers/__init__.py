"""Reads records from any supported format with `read_records`. Each document, query or label is a dictionary."""

from dream.corpora.readers.formats import format_of, read_records
from dream.corpora.readers.records import Fields, Records, find_field

__all__ = ["Fields", "Records", "find_field", "format_of", "read_records"]
