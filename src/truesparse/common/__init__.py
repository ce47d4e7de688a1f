"""What any part may need: files written whole, tables, values as people read them, libraries that may be missing."""
