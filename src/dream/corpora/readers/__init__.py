"""Reads records (one dictionary a document, query or label) from any supported format behind `read_records`."""

from dream.corpora.readers.formats import format_of, read_records
from dream.corpora.readers.records import Fields, Records, find_field

__all__ = ["Fields", "Records", "find_field", "format_of", "read_records"]
