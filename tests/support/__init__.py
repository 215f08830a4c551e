"""What tests share, one subject a file. Imported as `from support.servers import Server`: tests/ is on the path."""
