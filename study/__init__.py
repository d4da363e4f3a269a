"""What the scripts share, a room for each thing; nothing here is run by itself."""
