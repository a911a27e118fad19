"""Optional measurements of a record, one a file."""
