"""What is sent: inputs, recorded requests, and their bytes; what comes back, checked."""
