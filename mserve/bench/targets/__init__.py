"""What is measured: a server's URL, a bundle in this process, or a server of our own."""
