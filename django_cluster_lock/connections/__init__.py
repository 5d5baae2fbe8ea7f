"""All that opens sockets or knows redis-py."""
