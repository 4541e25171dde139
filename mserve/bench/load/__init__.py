"""What is sent when, by which processes, and what is seen of each request."""
