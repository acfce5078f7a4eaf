"""Where in a response does the preference signal sit? The library behind the workflow."""
