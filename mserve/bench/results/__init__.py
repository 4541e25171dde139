"""What was found, for people, for programs, and as a page."""
