"""The service: a run folder in front of people. Needs the extra ``serve``."""
