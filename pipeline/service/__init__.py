"""`slidestream serve`: the service that takes slides as they come off the scanner, for months."""
