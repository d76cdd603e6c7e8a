"""One experiment gives one record; many of them are a sweep."""
