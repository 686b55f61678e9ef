"""What runs on a cluster. Ray is imported here alone, and only where it is used (extra ``cluster``)."""
