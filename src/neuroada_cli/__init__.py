"""The command line; heavy imports stay inside the handlers, so that --help answers at once."""
